#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "config/tell.hpp"
#include "tests/config/support.hpp"

namespace caisson::config {
namespace {

using namespace testing;

std::string committed(const std::string& name) {
  const char* root = std::getenv("CAISSON_SOURCE_DIR");
  std::ifstream file(std::string{root ? root : "."} + '/' + name);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

TEST(generated, reference_page_is_up_to_date) {
  EXPECT_TRUE(committed("docs/configuration.md") == reference_page())
      << "write it anew: build/bin/caisson-config-doc page > docs/configuration.md";
}

TEST(generated, example_file_is_up_to_date) {
  EXPECT_TRUE(committed("config/configuration.toml") == example_file())
      << "write it anew: build/bin/caisson-config-doc example > config/configuration.toml";
}

TEST(generated, example_file_with_every_comment_opened_is_without_fault) {
  std::string opened;
  std::stringstream lines{example_file()};
  for (std::string line; std::getline(lines, line);) {
    const auto equals = line.find(" = ");
    if (line.starts_with("# ") && equals != line.npos && line.find(' ', 2) == equals &&
        find_key_by_path(line.substr(2, equals - 2)))
      line = line.substr(2);
    opened += line + '\n';
  }
  const auto out = load(one(opened), {});
  for (const auto& each : out.problems)
    if (each.text().find("needs `") == std::string::npos && each.text().find("pcie_root_port") == std::string::npos)
      ADD_FAILURE() << each.text();
}

TEST(generated, schema_knows_every_key) {
  const auto schema = json_schema();
  for (const auto& row : all_keys())
    EXPECT_NE(schema.find('"' + std::string{row.name} + "\": {"), std::string::npos) << row.name;
}

TEST(generated, schema_has_the_tables_of_the_builds_hypervisors) {
  const std::vector<backend_line> lines = {{"qemu", {}}, {"toaster", {}}};
  EXPECT_NE(json_schema(hypervisor_names{lines}).find("\"toaster\": {"), std::string::npos);
  EXPECT_EQ(json_schema().find("\"toaster\""), std::string::npos);
}

TEST(explaining, a_key_in_a_few_lines) {
  EXPECT_EQ(explain(*find_key_by_path("default_memory")),
            "hypervisor.default_memory (integer, MiB)\n"
            "  Memory at boot.\n"
            "  default     1024 (dialect page), 2048 (dialect kata)\n"
            "  allowed     an integer, 256 to 16777216 (MiB)\n"
            "  treatment   honoured\n"
            "  backends    qemu, cloud-hypervisor\n"
            "  annotation  io.katacontainers.config.hypervisor.default_memory\n"
            "  from        Kata\n");
  EXPECT_EQ(find_key_by_path("default_memroy"), nullptr);
  ASSERT_FALSE(similar_keys("default_memroy").empty());
  EXPECT_EQ(similar_keys("default_memroy").front(), "hypervisor.default_memory");
}

TEST(showing, every_value_has_an_origin) {
  const auto out = load(files({"[hypervisor.qemu]\nmemory_slots = 4\n", "[runtime]\nsizing_rule = \"add\"\n"}), {});
  const auto text = show(out.config, {});
  EXPECT_NE(text.find("hypervisor.qemu.memory_slots = 4"), std::string::npos);
  EXPECT_NE(text.find("# c.toml:2:16\n"), std::string::npos);
  EXPECT_NE(text.find("# d0.toml:2:15\n"), std::string::npos);
  EXPECT_NE(text.find("# built-in (page)\n"), std::string::npos);
}

TEST(differing, tells_each_key_once) {
  const auto a = load(one("[hypervisor.qemu]\nmemory_slots = 4\n"), {}).config;
  const auto b = load(one("[hypervisor.clh]\nmemory_slots = 5\ndefault_memory = 1024\n"), {}).config;
  EXPECT_EQ(to_text(differences(a, b)), "hypervisor: \"qemu\" -> \"clh\"  # built-in (page)\n"
                                        "hypervisor.memory_slots: 4 -> 5  # c.toml:2:16\n");
  EXPECT_TRUE(differences(a, a).empty());
}

void same_meaning(const sources& from) {
  load_options as_kata;
  if (load(from, {}).config.at(table::runtime, "dialect").from == origin::built_in)
    as_kata.overrides = {{"runtime.dialect", "kata"}};
  const auto before = load(from, as_kata);
  ASSERT_FALSE(has_error(before.problems)) << texts(before.problems);
  const auto text = migrate(before.config);
  const auto after = load(one(text), {});
  EXPECT_EQ(texts(after.problems), "") << text;

  v1::ResolveConfig request;
  if (!as_kata.overrides.empty()) {
    auto& each = *request.add_overrides();
    each.set_key("runtime.dialect");
    each.set_value("kata");
  }
  auto facts = host({"/usr/bin/cloud-hypervisor", "/usr/bin/qemu-system-aarch64", "/usr/share/aavmf/AAVMF_CODE.fd",
                     "/usr/share/aavmf/AAVMF_VARS.fd"});
  facts.backends = {{"qemu", {"x86_64", "aarch64"}}, {"cloud-hypervisor", {"x86_64"}}};
  const auto old_box = resolve(request, from, facts);
  const auto new_box = resolve({}, one(text), facts);
  ASSERT_TRUE(old_box.config) << texts(old_box.problems);
  ASSERT_TRUE(new_box.config) << texts(new_box.problems) << text;
  EXPECT_EQ(old_box.config->sandbox().DebugString(), new_box.config->sandbox().DebugString()) << text;
}

TEST(migrating, keeps_the_meaning) {
  same_meaning(one(""));
  same_meaning(one("[hypervisor.qemu]\nenable_virtio_mem = true\npcie_root_port = 3\nimage = \"/i\"\n"
                   "[agent.kata]\ndial_timeout = 99\ncreate_container_timeout = 7\n"));
  same_meaning(
      one("[hypervisor.qemu]\ndefault_root_ports = 2\nmemory_method = \"dimm\"\n[runtime]\ndialect = \"page\"\n"));
  same_meaning(one("[hypervisor.qemu]\nkernel_params = \"a=\\\"b\\\\c\\\"\"\ndefault_vcpus = 1.5\n"));
}

TEST(migrating, keeps_the_meaning_of_katas_own_files) {
  const char* directory = std::getenv("CAISSON_KATA_CONFIGS");
  if (!directory)
    GTEST_SKIP() << "CAISSON_KATA_CONFIGS is not set: Kata's own files are not migrated";
  for (const char* name : {"go-qemu-amd64.toml", "rs-qemu-amd64.toml", "go-clh-amd64.toml", "go-qemu-arm64.toml"})
    same_meaning(read_sources(std::string{directory} + '/' + name, true, read_host_facts()));
}

TEST(migrating, says_what_it_leaves_behind) {
  const auto text = migrate(load(one("[hypervisor.qemu]\nimage = \"/i\"\nvirtio_fs_cache_size = 3\n"), {}).config);
  EXPECT_NE(text.find("#- image = \"/i\""), std::string::npos) << text;
  EXPECT_NE(text.find("#- virtio_fs_cache_size = 3  (nothing is shared with the guest by a file system)"),
            std::string::npos)
      << text;
}

TEST(watching, the_directories_come_first) {
  sources from;
  from.path = "/real/configuration.toml";
  from.files = {{"/etc/c.toml", ""}, {"/real/config.d/a.toml", ""}};
  EXPECT_EQ(watch_set("/etc/c.toml", from),
            (std::vector<std::string>{"/etc", "/real", "/real/config.d", "/etc/c.toml", "/real/configuration.toml",
                                      "/real/config.d/a.toml"}));
}

} // namespace
} // namespace caisson::config
