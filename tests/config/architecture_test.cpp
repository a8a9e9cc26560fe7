#include <gtest/gtest.h>

#include "tests/config/support.hpp"

namespace caisson::config {
namespace {

using namespace testing;

outcome resolved(const std::string& text, const std::string& architecture) {
  v1::ResolveConfig request;
  auto* asked = request.add_overrides();
  asked->set_key("architecture");
  asked->set_value(architecture);
  auto facts = host({"/usr/bin/qemu-system-aarch64", "/opt/qemu-system-aarch64"});
  facts.backends[0].architectures.push_back("aarch64");
  return resolve(request, one(text), facts);
}

TEST(architecture, one_word_makes_it_an_arm64_machine) {
  for (const char* text : {"", "[hypervisor.qemu]\npath = \"/usr/bin/qemu-system-x86_64\"\nmachine_type = \"q35\"\n"}) {
    const auto out = resolved(text, "aarch64");
    ASSERT_TRUE(out.config) << texts(out.problems);
    EXPECT_EQ(out.config->sandbox().architecture(), "aarch64");
    EXPECT_EQ(out.config->sandbox().machine_type(), "virt");
    EXPECT_EQ(out.config->sandbox().vmm_path(), "/usr/bin/qemu-system-aarch64");
  }
}

TEST(architecture, keeps_the_program_that_a_file_names_for_it) {
  const std::string arm = "[hypervisor.qemu]\npath = \"/opt/qemu-system-aarch64\"\nmachine_type = \"virt\"\n";
  EXPECT_EQ(resolved(arm, "aarch64").config->sandbox().vmm_path(), "/opt/qemu-system-aarch64");
  const auto back = resolved(arm, "x86_64");
  ASSERT_TRUE(back.config) << texts(back.problems);
  EXPECT_EQ(back.config->sandbox().machine_type(), "q35");
  EXPECT_EQ(back.config->sandbox().vmm_path(), "/usr/bin/qemu-system-x86_64");
}

TEST(architecture, an_unknown_one_is_refused_with_the_nearest) {
  const auto out = resolved("", "arm64");
  EXPECT_FALSE(out.config);
  EXPECT_NE(texts(out.problems).find("did you mean aarch64"), std::string::npos) << texts(out.problems);
}

TEST(architecture, automatic_firmware_is_left_to_the_backend) {
  const auto out = resolved("[hypervisor.qemu]\nfirmware = \"auto\"\nmemory_method = \"dimm\"\n", "aarch64");
  ASSERT_TRUE(out.config) << texts(out.problems);
  EXPECT_EQ(out.config->sandbox().firmware_path(), "auto");
}

} // namespace
} // namespace caisson::config
