#include <gtest/gtest.h>

#include "tests/config/support.hpp"

namespace caisson::config {
namespace {

using namespace testing;

const std::string gated =
    "[hypervisor.qemu]\n"
    "enable_annotations = [\"default_memory\", \"default_max_vcpus\", \"path\", \"default_.cpus\", \"enable_iommu\"]\n"
    "valid_hypervisor_paths = [\"/usr/bin/qemu-system-*\", \"/opt/*/bin/qemu\"]\n";

load_result with(std::map<std::string, std::string> annotations, const std::string& text = gated) {
  load_options options;
  options.annotations = std::move(annotations);
  return load(one(text), options);
}

const std::string head = "io.katacontainers.config.";

TEST(annotations, an_enabled_one_wins_over_the_file) {
  const auto out = with({{head + "hypervisor.default_memory", "512Mi"}});
  EXPECT_EQ(texts(out.problems), "");
  EXPECT_EQ(value_of(out.config, "hypervisor.default_memory"), "512");
  EXPECT_EQ(to_string(out.config.at(table::hypervisor, "default_memory").where),
            "annotation io.katacontainers.config.hypervisor.default_memory");
}

TEST(annotations, what_is_not_enabled_is_refused_and_the_gate_is_named) {
  const auto out = with({{head + "hypervisor.kernel_params", "quiet"}});
  EXPECT_NE(texts(out.problems)
                .find("annotation io.katacontainers.config.hypervisor.kernel_params: is not enabled: no expression of "
                      "enable_annotations at c.toml:2:22 matches \"kernel_params\""),
            std::string::npos)
      << texts(out.problems);
  EXPECT_EQ(value_of(out.config, "hypervisor.kernel_params"), "\"\"");
}

TEST(annotations, an_expression_has_to_match_the_whole_name) {
  EXPECT_EQ(errors(with({{head + "hypervisor.enable_iommu_platform", "false"}}).problems), 1);
  EXPECT_EQ(errors(with({{head + "hypervisor.default_vcpus", "2"}}).problems), 0);
}

TEST(annotations, the_maximum_of_vcpus_is_spelt_otherwise_than_in_the_file) {
  const auto right = with({{head + "hypervisor.default_max_vcpus", "3"}});
  EXPECT_EQ(texts(right.problems), "");
  EXPECT_EQ(value_of(right.config, "hypervisor.default_maxvcpus"), "3");
  const auto trap = with({{head + "hypervisor.default_maxvcpus", "3"}});
  EXPECT_NE(texts(trap.problems)
                .find("unknown annotation; did you mean io.katacontainers.config.hypervisor.default_max_vcpus?"),
            std::string::npos)
      << texts(trap.problems);
}

TEST(annotations, a_path_has_to_be_in_the_list) {
  EXPECT_EQ(texts(with({{head + "hypervisor.path", "/usr/bin/qemu-system-x86_64"}}).problems), "");
  for (const char* bad :
       {"/usr/bin/sh", "/usr/bin/qemu-system-/../sh", "/opt/a/b/bin/qemu", "/usr/bin/qemu-system-a/b", ""})
    EXPECT_EQ(errors(with({{head + "hypervisor.path", bad}}).problems), 1) << bad;
  EXPECT_EQ(
      errors(with({{head + "hypervisor.path", "/x"}}, "[hypervisor.qemu]\nenable_annotations = [\".*\"]\n").problems),
      1);
}

TEST(annotations, others_are_none_of_ours) {
  EXPECT_EQ(
      texts(
          with({{"io.kubernetes.cri.sandbox-memory", "x"}, {"io.katacontainers.pkg.oci.bundle_path", "/b"}}).problems),
      "");
}

TEST(annotations, of_kata_that_cannot_be_honoured_are_said) {
  EXPECT_NE(texts(with({{"io.katacontainers.config_path", "/etc/x.toml"}}).problems)
                .find("refused: whoever starts the sandbox names the file"),
            std::string::npos);
  const auto other = with({{"io.katacontainers.container.resource.swappiness", "60"}});
  EXPECT_EQ(errors(other.problems), 0);
  EXPECT_NE(texts(other.problems).find("swappiness: has no meaning here"), std::string::npos);
}

TEST(annotations, a_pod_chooses_only_among_the_files_hypervisors) {
  EXPECT_EQ(errors(with({{head + "runtime.hypervisor_name", "simulated"}}).problems), 1);
  EXPECT_EQ(errors(with({{head + "runtime.hypervisor_name", "qemu"}}).problems), 0);
}

TEST(annotations, values_are_checked_like_a_file) {
  EXPECT_NE(texts(with({{head + "hypervisor.default_memory", "12"}}).problems).find("is too small"), std::string::npos);
  EXPECT_NE(texts(with({{head + "hypervisor.default_memory", "lots"}}).problems).find("cannot be read"),
            std::string::npos);
  EXPECT_NE(texts(with({{head + "agent.kernel_modules", "e1000e a=1; i915"}}).problems).find("refused: "),
            std::string::npos);
}

TEST(annotations, a_hash_that_nobody_checks_is_refused) {
  EXPECT_NE(texts(with({{head + "hypervisor.kernel_hash", "ab"}}).problems).find("refused: "), std::string::npos);
}

TEST(annotations, hostile_names_are_shown_escaped) {
  const auto said = texts(with({{head + "hypervisor.\x1b[2J", "1"}}).problems);
  EXPECT_EQ(said.find('\x1b'), std::string::npos);
  EXPECT_NE(said.find("\\x1b"), std::string::npos);
}

TEST(globs, stay_within_a_component) {
  EXPECT_TRUE(glob_match("/a/*", "/a/b"));
  EXPECT_FALSE(glob_match("/a/*", "/a/b/c"));
  EXPECT_TRUE(glob_match("/a/?[xy]", "/a/bx"));
  EXPECT_FALSE(glob_match("/a/?[!xy]", "/a/bx"));
  EXPECT_TRUE(glob_match("/*/*/c*d", "/a/b/cccd"));
  EXPECT_TRUE(glob_match("", ""));
  const std::string many(2000, '*');
  EXPECT_FALSE(glob_match(many + "b", std::string(2000, 'a')));
}

} // namespace
} // namespace caisson::config
