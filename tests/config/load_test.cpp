#include <gtest/gtest.h>

#include <set>

#include "config/nearest.hpp"
#include "tests/config/support.hpp"

namespace caisson::config {
namespace {

using namespace testing;

struct faulty {
  const char* text;
  const char* says; // somewhere in the problems
};

class faults : public ::testing::TestWithParam<faulty> {};

TEST_P(faults, is_said) {
  const auto out = load(one(GetParam().text), {});
  EXPECT_NE(texts(out.problems).find(GetParam().says), std::string::npos) << "text:\n"
                                                                          << GetParam().text << "\nsaid:\n"
                                                                          << texts(out.problems);
}

INSTANTIATE_TEST_SUITE_P(
    table, faults,
    ::testing::Values(
        faulty{"[hypervisor.qemu]\ndefault_memroy = 4096\n",
               "c.toml:2:1: hypervisor.qemu.default_memroy = 4096: unknown key in [hypervisor.qemu]; did you mean "
               "default_memory?"},
        faulty{"[hypervisr.qemu]\n", "c.toml:1:2: hypervisr: unknown table; allowed: [hypervisor]"},
        faulty{"[hypervisor.qemuu]\n", "c.toml:1:13: hypervisor.qemuu: unknown table"},
        faulty{"[runtime]\nenable_debg = true\n",
               "c.toml:2:1: runtime.enable_debg = true: unknown key in [runtime]; did you mean enable_debug?"},
        faulty{"[agent.kata]\ndial_timeot_ms = 1\n", "did you mean dial_timeout_ms?"},
        faulty{"[hypervisor.qemu.factory]\nenable_templat = true\n", "did you mean enable_template?"},
        faulty{"[runtime]\ndefault_memory = 4096\n",
               "that key belongs into another table; did you mean hypervisor.default_memory?"},
        faulty{"[hypervisor.qemu]\ndefault_memory = \"4G\"\n",
               "c.toml:2:18: hypervisor.qemu.default_memory = \"4G\": is a string, not an integer; allowed: an "
               "integer, 256 to 16777216 (MiB); did you mean 4096?"},
        faulty{"[hypervisor.qemu]\ndefault_memory = -512\n",
               "c.toml:2:18: hypervisor.qemu.default_memory = -512: is too small"},
        faulty{"[hypervisor.qemu]\ndefault_memory = 128\n", "is too small; allowed: an integer, 256 to 16777216 (MiB)"},
        faulty{"[hypervisor.qemu]\nmemory_slots = -1\n", "memory_slots = -1: is negative"},
        faulty{"[hypervisor.qemu]\nmemory_slots = 1000\n",
               "memory_slots = 1000: is too large; allowed: an integer, 0 to 256"},
        faulty{"[hypervisor.qemu]\nmemory_slots = 256\ndefault_bridges = -1\n", "default_bridges = -1: is negative"},
        faulty{"[hypervisor.qemu]\ndefault_bridges = 99\n",
               "default_bridges = 99: is too large; allowed: an integer, 0 to 5"},
        faulty{"[hypervisor.qemu]\npcie_root_port = 99\n",
               "pcie_root_port = 99: is too large; allowed: an integer, 0 to 16"},
        faulty{"[hypervisor.qemu]\ndefault_vcpus = 2\ndefault_maxvcpus = 1\n",
               "c.toml:2:17: hypervisor.qemu.default_vcpus = 2: default_vcpus is above default_maxvcpus; the other is "
               "hypervisor.qemu.default_maxvcpus = 1 (c.toml:3:20)"},
        faulty{"[hypervisor.qemu]\ndefault_maxmemory = 512\ndefault_memory = 2048\n",
               "default_memory is above default_maxmemory; the other is hypervisor.qemu.default_maxmemory = 512 "
               "(c.toml:2:21)"},
        faulty{"[hypervisor.qemu]\ndefault_maxmemory = 512\n",
               "c.toml:2:21: hypervisor.qemu.default_maxmemory = 512: default_memory is above default_maxmemory"},
        faulty{"[hypervisor.qemu]\ndefault_root_ports = 4\npcie_root_port = 2\n",
               "two names of one thing with different values"},
        faulty{"[hypervisor.qemu]\nmachine_type = \"isapc\"\n", "machine_type = \"isapc\": is not a known value"},
        faulty{"[hypervisor.qemu]\nmachine_type = \"q53\"\n", "did you mean \"q35\"?"},
        faulty{"[hypervisor.qemu]\nimage = \"/i\"\ninitrd = \"/j\"\n", "image and initrd are both set"},
        faulty{"[factory]\nenable_template = true\n",
               "c.toml:2:19: factory.enable_template = true: refused: there are no VM templates yet"},
        faulty{"[hypervisor.qemu]\nhot_plug_vfio = \"root-port\"\ncold_plug_vfio = \"root-port\"\n",
               "hot plug and cold plug at once"},
        faulty{"[hypervisor.qemu]\nhot_plug_vfio = \"usb-port\"\n",
               "hot_plug_vfio = \"usb-port\": is not a known value"},
        faulty{"[hypervisor.dragonball]\n",
               "hypervisor \"dragonball\" is not supported; backends: qemu, cloud-hypervisor"},
        faulty{"[hypervisor.firecracker]\n", "hypervisor \"firecracker\" is not supported; backends: "},
        faulty{"[hypervisor.qemu]\n[hypervisor.clh]\n",
               "there is more than one hypervisor: [hypervisor.qemu] at c.toml:1:13, [hypervisor.clh] at c.toml:2:13"},
        faulty{"[runtime]\nhypervisor_name = \"qmeu\"\n", "no such hypervisor"},
        faulty{"[hypervisor.qemu]\n[runtime]\nhypervisor_name = \"clh\"\n", "there is no table [hypervisor.clh]"},
        faulty{"hypervisor = 3\n", "hypervisor = 3: is an integer, not a table"},
        faulty{"[hypervisor]\nqemu = 3\n", "hypervisor.qemu = 3: is an integer, not a table"},
        faulty{"[hypervisor]\ndefault_memory = 512\n", "stands in no hypervisor's table"},
        faulty{"default_memory = 512\n", "c.toml:1:1: default_memory = 512: key outside any table"},
        faulty{"[hypervisor.qemu]\ndefault_memory = 99999999999999999999\n", "c.toml:2:"},
        faulty{"[hypervisor.qemu]\nenable_virtio_mem = \"true\"\n",
               "is a string, not a boolean; allowed: true or false; did you mean true?"},
        faulty{"[hypervisor.qemu]\nenable_virtio_mem = 1\n", "is an integer, not a boolean"},
        faulty{"[hypervisor.qemu]\npflashes = [\"a\"]\n", "pflashes = [\"a\"]: has 1 image; allowed: none, or two"},
        faulty{"[hypervisor.qemu]\npflashes = \"a\"\n", "is a string, not an array of strings"},
        faulty{"[hypervisor.qemu]\nkernel_params = \"a\\nb\"\n", "contains a control character"},
        faulty{"[hypervisor.qemu]\ndefault_vcpus = nan\n", "is not a finite number"},
        faulty{"[hypervisor.qemu]\ndefault_vcpus = 1979-05-27\n", "is a date, not a number"},
        faulty{"[hypervisor.qemu]\nenable_annotations = [\"(\"]\n", "is no regular expression"},
        faulty{"[hypervisor.qemu]\npath = \"/usr/bin/qemu-system-aarch64\"\nmachine_type = \"virt\"\nenable_virtio_mem "
               "= false\n",
               "on ARM64 memory hotplug by DIMM needs UEFI firmware"},
        faulty{"[hypervisor.qemu]\npath = \"/usr/bin/qemu-system-aarch64\"\nmachine_type = \"q35\"\n",
               "another architecture's than the program"},
        faulty{"[hypervisor.qemu]\nguest = \"file\"\n", "needs `kernel`"},
        faulty{"[runtime]\ncreate_container_timeout = 3\n[agent.kata]\ncreate_container_timeout = 4\n",
               "two names of one thing"},
        faulty{"[agent.hyperstart]\n", "agent.hyperstart: unknown table; allowed: [agent.kata]"},
        faulty{"[hypervisor.qemu]\nconfidential_guest = true\n", "refused: Caisson runs no confidential guests"},
        faulty{"[[hypervisor.qemu.guest_extension_images]]\npath = \"/x\"\n",
               "refused: Caisson's own guest takes no further images"},
        faulty{"[hypervisor.qemu]\nmachine_accelerators = \"kernel_irqchip=split\"\n",
               "has no meaning here: the machine's options are chosen by the backend"}));

TEST(loading, tells_everything_in_one_run) {
  const auto out = load(one("[hypervisor.qemu]\n"
                            "default_memroy = 1\n"
                            "memory_slots = 1000\n"
                            "default_memory = = 3\n"
                            "default_bridges = 99\n"
                            "[runtme]\n"),
                        {});
  EXPECT_EQ(errors(out.problems), 5) << texts(out.problems);
  unsigned last = 0;
  for (const auto& each : out.problems) {
    EXPECT_EQ(
        each.text().rfind("c.toml:" + std::to_string(each.line()) + ':' + std::to_string(each.column()) + ": ", 0), 0u)
        << each.text();
    EXPECT_GE(each.line(), last);
    last = each.line();
  }
}

TEST(loading, lenient_turns_unknown_keys_into_warnings_and_nothing_else) {
  load_options lenient;
  lenient.lenient = true;
  const auto out = load(one("[hypervisor.qemu]\ndefault_memroy = 1\nmemory_slots = 1000\n[runtme]\n"), lenient);
  EXPECT_EQ(out.problems.size(), 3u);
  EXPECT_EQ(errors(out.problems), 1) << texts(out.problems);
}

TEST(loading, the_dialect_chooses_the_defaults) {
  const auto page = load(one(""), {}).config;
  EXPECT_EQ(value_of(page, "hypervisor.default_memory"), "1024");
  EXPECT_EQ(value_of(page, "hypervisor.memory_slots"), "10");
  EXPECT_EQ(value_of(page, "runtime.sizing_rule"), "\"share\"");
  const auto kata = load(one("[runtime]\ndialect = \"kata\"\n"), {}).config;
  EXPECT_EQ(value_of(kata, "hypervisor.default_memory"), "2048");
  EXPECT_EQ(value_of(kata, "runtime.sizing_rule"), "\"add\"");
  EXPECT_EQ(to_string(kata.at(table::hypervisor, "default_memory").where), "built-in (kata)");
}

TEST(loading, the_last_drop_in_wins_and_arrays_are_replaced_whole) {
  const auto out = load(files({"[hypervisor.qemu]\ndefault_memory = 512\nenable_annotations = [\"a\", \"b\"]\n",
                               "[hypervisor.qemu]\ndefault_memory = 600\nenable_annotations = [\"c\"]\n",
                               "[hypervisor.qemu]\ndefault_memory = 700\n"}),
                        {});
  EXPECT_EQ(texts(out.problems), "");
  EXPECT_EQ(value_of(out.config, "hypervisor.default_memory"), "700");
  EXPECT_EQ(to_string(out.config.at(table::hypervisor, "default_memory").where), "d1.toml:2:18");
  EXPECT_EQ(value_of(out.config, "hypervisor.enable_annotations"), "[\"c\"]");
}

TEST(loading, a_fault_in_a_drop_in_names_the_drop_in) {
  const auto out = load(files({"[hypervisor.qemu]\n", "[hypervisor.qemu]\ndefault_memroy = 1\n"}), {});
  EXPECT_NE(texts(out.problems).find("d0.toml:2:1: hypervisor.qemu.default_memroy"), std::string::npos)
      << texts(out.problems);
}

TEST(loading, the_command_line_wins_over_the_file) {
  load_options options;
  options.overrides = {
      {"default_memory", "2GiB"}, {"runtime.sizing_rule", "add"}, {"hypervisor.qemu.memory_slots", "3"}};
  const auto out = load(one("[hypervisor.qemu]\ndefault_memory = 512\n"), options);
  EXPECT_EQ(texts(out.problems), "");
  EXPECT_EQ(value_of(out.config, "hypervisor.default_memory"), "2048");
  EXPECT_EQ(value_of(out.config, "hypervisor.memory_slots"), "3");
  EXPECT_EQ(to_string(out.config.at(table::hypervisor, "default_memory").where), "command line");
}

TEST(loading, another_hypervisor_from_the_command_line_takes_the_figures_of_the_only_table) {
  load_options options;
  options.overrides = {{"hypervisor_name", "simulated"}};
  options.hypervisors = hypervisor_names{host().backends};
  const auto out = load(one("[hypervisor.qemu]\ndefault_memory = 512\npath = \"/nowhere\"\n"), options);
  EXPECT_EQ(texts(out.problems), "");
  EXPECT_EQ(out.config.backend, "simulated");
  EXPECT_EQ(value_of(out.config, "hypervisor.default_memory"), "512");
  EXPECT_EQ(out.config.text(table::hypervisor, "path"), "");
}

load_options with_backends(std::vector<backend_line> lines) {
  load_options out;
  out.hypervisors = hypervisor_names{lines};
  return out;
}

TEST(hypervisors, a_backend_of_the_registry_that_no_rule_knows_loads_by_its_name) {
  auto options = with_backends({{"qemu", {"x86_64"}}, {"toaster", {}}});
  const auto out = load(one("[hypervisor.toaster]\ndefault_memory = 512\nmemory_slots = 4\npath = \"/opt/toaster\"\n"
                            "[hypervisor.toaster.factory]\ntemplate_path = \"\"\n"
                            "[runtime]\nhypervisor_name = \"toaster\"\n"),
                        options);
  EXPECT_EQ(texts(out.problems), "");
  EXPECT_EQ(out.config.backend, "toaster");
  EXPECT_EQ(value_of(out.config, "hypervisor.toaster.default_memory"), "512");
  options.overrides = {{"hypervisor_name", "toaster"}, {"hypervisor.toaster.default_memory", "768"}};
  const auto asked = load(one("[hypervisor.qemu]\nmemory_slots = 4\n"), options);
  EXPECT_EQ(texts(asked.problems), "");
  EXPECT_EQ(asked.config.backend, "toaster");
  EXPECT_EQ(value_of(asked.config, "hypervisor.memory_slots"), "4");
  EXPECT_EQ(value_of(asked.config, "hypervisor.default_memory"), "768");
}

TEST(hypervisors, an_unknown_name_is_told_what_there_is) {
  auto options = with_backends({{"qemu", {}}, {"cloud-hypervisor", {}}, {"toaster", {}}});
  const auto there = "one of qemu, clh, cloud-hypervisor, toaster";
  EXPECT_EQ(texts(load(one("[hypervisor.toastr]\n"), options).problems),
            "c.toml:1:13: hypervisor.toastr: unknown table; allowed: [hypervisor.qemu], [hypervisor.clh], "
            "[hypervisor.cloud-hypervisor], [hypervisor.toaster]; did you mean [hypervisor.toaster]?\n");
  options.overrides = {{"runtime.hypervisor_name", "grill"}};
  EXPECT_EQ(texts(load(one(""), options).problems),
            std::string{"command line: runtime.hypervisor_name = \"grill\": no such hypervisor; allowed: "} + there +
                '\n');
  options.overrides = {{"hypervisor.toastr.default_memory", "512"}};
  EXPECT_EQ(texts(load(one(""), options).problems),
            std::string{"command line: hypervisor.toastr.default_memory = 512: no such hypervisor; allowed: "} + there +
                "; did you mean toaster?\n");
  // Of Kata's names only those that this build can run are offered.
  options = with_backends({{"toaster", {}}});
  options.overrides = {{"runtime.hypervisor_name", "grill"}};
  EXPECT_NE(texts(load(one(""), options).problems).find("allowed: one of toaster\n"), std::string::npos);
}

TEST(hypervisors, katas_refused_names_stay_refused_unless_somebody_writes_the_backend) {
  const auto without = with_backends({{"qemu", {}}, {"toaster", {}}});
  const auto said = load(one("[hypervisor.fc]\n"), without);
  EXPECT_EQ(texts(said.problems),
            "c.toml:1:13: hypervisor.fc: hypervisor \"fc\" is not supported; backends: qemu, toaster\n");
  EXPECT_EQ(said.config.backend, "");
  const auto with = with_backends({{"qemu", {}}, {"firecracker", {}}});
  for (const char* name : {"firecracker", "fc"}) {
    const auto out = load(one("[hypervisor." + std::string{name} + "]\n"), with);
    EXPECT_EQ(texts(out.problems), "");
    EXPECT_EQ(out.config.backend, "firecracker");
  }
}

TEST(key_table, is_whole) {
  std::set<std::string> seen;
  for (const auto& row : all_keys()) {
    const auto path = path_of(row);
    EXPECT_TRUE(seen.insert(path).second) << path << " stands twice";
    EXPECT_FALSE(row.doc.empty()) << path;
    EXPECT_TRUE(row.doc.ends_with('.')) << path;
    EXPECT_EQ(row.what == treatment::honoured, row.why.empty()) << path;
    EXPECT_EQ(find_key_by_path(path), &row) << path;
    if (!row.preset.empty()) {
      EXPECT_FALSE(std::holds_alternative<std::monostate>(preset_of(row, false))) << path;
      EXPECT_FALSE(check_value(row, preset_of(row, false), "the preset")) << path;
      EXPECT_FALSE(check_value(row, preset_of(row, true), "the preset")) << path;
      EXPECT_EQ(to_toml(preset_of(row, false)), row.preset) << path;
    }
  }
  EXPECT_GT(all_keys().size(), 200u);
}

TEST(nearest_word, swaps_and_case_are_small_edits) {
  const std::vector<std::string_view> words = {"default_memory", "default_maxmemory", "memory_slots"};
  EXPECT_EQ(nearest("default_memroy", words), "default_memory");
  EXPECT_EQ(nearest("Default_Memory", words), "default_memory");
  EXPECT_EQ(nearest("memory_slot", words), "memory_slots");
  EXPECT_EQ(nearest("zzz", words), "");
}

TEST(sizes, as_people_write_them) {
  EXPECT_EQ(parse_size("1536M"), std::uint64_t{1536} << 20);
  EXPECT_EQ(parse_size("2GiB"), std::uint64_t{2} << 30);
  EXPECT_EQ(parse_size("17"), 17u);
  for (const char* bad : {"", "G", "-1G", "1.5G", "1GX", "99999999999999999999", "9999999999G"})
    EXPECT_FALSE(parse_size(bad)) << bad;
}

} // namespace
} // namespace caisson::config
