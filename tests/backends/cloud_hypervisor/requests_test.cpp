// Our own schema, the builders and the table of versions.

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <set>

#include "backends/cloud-hypervisor/request_schema.hpp"
#include "tests/backends/cloud_hypervisor/any_request.hpp"

namespace caisson::cloud_hypervisor {
namespace {

using nlohmann::json;
using namespace testing;

vm_config small_vm() {
  vm_config vm;
  vm.max_vcpus = 4;
  vm.memory_bytes = 512u << 20;
  vm.hotplug_bytes = std::uint64_t{4} << 30;
  vm.shared = true;
  vm.kernel = "/opt/g/vmlinux";
  vm.command_line = "console=hvc0 memhp_default_state=online_movable";
  vm.disks = {{.path = "/opt/g/root.img", .read_only = true}};
  vm.shares = {{.tag = "share", .socket = "/run/x/vfs.sock"}};
  vm.entropy_source = "/dev/urandom";
  vm.balloon = balloon_config{.free_page_reporting = true};
  vm.console = {console_mode::file, "/run/x/console.log"};
  vm.vsock = vsock_config{3, "/run/x/v.sock"};
  vm.pvpanic = true;
  return vm;
}

TEST(requests, a_vm_is_described_in_full) {
  auto body = json::parse(requests::create(small_vm()).body);
  EXPECT_EQ(body, json::parse(R"({"cpus":{"boot_vcpus":1,"max_vcpus":4},
    "memory":{"size":536870912,"hotplug_method":"VirtioMem","hotplug_size":4294967296,"shared":true,"hugepages":false,
              "prefault":false},
    "payload":{"kernel":"/opt/g/vmlinux","cmdline":"console=hvc0 memhp_default_state=online_movable"},
    "disks":[{"path":"/opt/g/root.img","readonly":true,"image_type":"Raw"}],
    "rng":{"src":"/dev/urandom"},"balloon":{"size":0,"deflate_on_oom":true,"free_page_reporting":true},
    "fs":[{"tag":"share","socket":"/run/x/vfs.sock","num_queues":1,"queue_size":1024}],
    "serial":{"mode":"Off"},"console":{"mode":"File","file":"/run/x/console.log"},
    "vsock":{"cid":3,"socket":"/run/x/v.sock"},"pvpanic":true,"watchdog":false})"));
}

RC_GTEST_PROP(requests, all_that_the_builders_make_passes_our_own_schema, ()) {
  auto what = any_request(*rc::gen::inRange(0, request_kinds));
  auto wrong = violation(what);
  if (!wrong.empty())
    RC_FAIL(what.body + ": " + wrong);
}

TEST(requests, cover_the_whole_schema) {
  std::set<std::string> made;
  EXPECT_TRUE(rc::check([&made] {
    for (int kind = 0; kind < request_kinds; ++kind) {
      auto what = any_request(kind);
      made.insert(what.method + " " + std::string{what.verb()});
    }
  }));
  for (const auto& each : schema::endpoints())
    EXPECT_TRUE(made.contains(std::string{each.method} + " " + std::string{each.verb}))
        << each.verb << " is in the schema, but no builder makes it";
  EXPECT_EQ(made.size(), schema::endpoints().size());
}

// Every object of a body, so that one of them can be spoilt.
void collect(json& at, std::vector<json*>& into) {
  if (at.is_object())
    into.push_back(&at);
  if (at.is_structured())
    for (auto& each : at)
      collect(each, into);
}

RC_GTEST_PROP(requests, a_key_that_is_not_in_the_schema_is_refused_wherever_it_stands, ()) {
  auto what = any_request(*rc::gen::inRange(10, request_kinds));
  auto body = json::parse(what.body);
  std::vector<json*> objects;
  collect(body, objects);
  (*objects[*rc::gen::inRange<std::size_t>(0, objects.size())])["hotplugSize"] = 1;
  what.body = body.dump();
  RC_ASSERT(violation(what).find("hotplugSize: this key is not in our schema") != std::string::npos);
}

RC_GTEST_PROP(requests, a_value_of_another_kind_is_refused_wherever_it_stands, ()) {
  auto what = any_request(*rc::gen::inRange(10, request_kinds));
  auto body = json::parse(what.body);
  std::vector<json*> objects;
  collect(body, objects);
  objects.erase(std::remove_if(objects.begin(), objects.end(), [](auto each) { return each->empty(); }), objects.end());
  auto& object = *objects[*rc::gen::inRange<std::size_t>(0, objects.size())];
  auto at = std::next(object.begin(), *rc::gen::inRange<std::ptrdiff_t>(0, static_cast<std::ptrdiff_t>(object.size())));
  *at = *rc::gen::element<json>(nullptr, 0.5, json::array({7}), std::uint64_t{1} << 63, -1, "a\nb", "");
  what.body = body.dump();
  RC_ASSERT(!violation(what).empty());
}

std::string wrong_in_vm(const vm_config& vm) {
  return violation(requests::create(vm));
}

TEST(requests, what_is_wrong_is_named) {
  const std::string ours = " (Caisson's own check; nothing was sent)";
  auto vm = small_vm();
  vm.memory_bytes = std::uint64_t{1} << 63;
  EXPECT_EQ(wrong_in_vm(vm), "memory.size: expected an integer from 1 to 9223372036854775807, got 9223372036854775808" + ours);
  vm = small_vm();
  vm.disks.push_back({.path = "/a\xff"});
  EXPECT_EQ(wrong_in_vm(vm).find("disks[1].path: expected a text in UTF-8"), 0u) << wrong_in_vm(vm);
  vm = small_vm();
  vm.vsock->cid = 2;
  EXPECT_EQ(wrong_in_vm(vm), "vsock.cid: expected an integer from 3 to 4294967294, got 2" + ours);
  vm = small_vm();
  vm.console = {console_mode::socket, "/x"};
  EXPECT_EQ(wrong_in_vm(vm).find("console.mode: expected one of Off, Null, Tty, Pty, File, got \"Socket\""), 0u);
  vm = small_vm();
  vm.command_line = std::string(60'000, 'x');
  EXPECT_NE(wrong_in_vm(vm).find("the VMM takes 51200 at most"), std::string::npos);

  auto body = json::parse(requests::create(small_vm()).body);
  body["memory"]["hotplug_method"] = "acpi";
  request what{"PUT", "/api/v1/vm.create", body.dump()};
  EXPECT_EQ(violation(what), "memory.hotplug_method: expected one of Acpi, VirtioMem, got \"acpi\"" + ours);

  EXPECT_EQ(violation({"PUT", "/api/v1/vm.boot", "{}"}), "it takes no body; the VMM refuses every one, {} too" + ours);
  EXPECT_EQ(violation({"PUT", "/api/v1/vm.resize", "{}"}).find("the body: expected exactly one key, got 0"), 0u);
  EXPECT_EQ(violation({"PUT", "/api/v1/vm.resize", R"({"desired_ram":1,"desired_vcpus":1})"})
                .find("the body: expected exactly one key, got 2"),
            0u);
  EXPECT_EQ(violation({"PUT", "/api/v1/vm.resize", R"({"desired_vcpus":0})"})
                .find("desired_vcpus: expected an integer from 1"),
            0u);
  EXPECT_EQ(violation({"PUT", "/api/v1/vm.snapshot", {}}), "this verb is not in our schema" + ours);
  EXPECT_EQ(violation({"POST", "/api/v1/vm.boot", {}}), "this verb is not in our schema" + ours);
  EXPECT_EQ(violation({"PUT", "/vm.boot", {}}), "the path has to begin with /api/v1/" + ours);
  EXPECT_EQ(violation({"PUT", "/api/v1/vm.resize", "{\"desired_ram\":"}), "the body is no JSON" + ours);
}

TEST(versions, are_read_in_every_form_in_which_the_vmm_says_them) {
  for (std::string_view each : {"53.0.0", "v53.0.0", "v53.0-dirty", "cloud-hypervisor v53.0"}) {
    auto verdict = judge_version(each);
    ASSERT_NE(verdict.facts, nullptr) << each;
    EXPECT_EQ(verdict.facts->name, "v53") << each;
    EXPECT_EQ(verdict.warning, "");
  }
  EXPECT_EQ(judge_version("51.1.0").facts->name, "v47 to v51");
  EXPECT_EQ(judge_version("54.0.0").facts->name, "v54");
  EXPECT_EQ(judge_version("v53.0-246-gae44c2971").facts->name, "v54") << "a build on the way there";
  EXPECT_EQ(judge_version("42.0").facts->name, "v42 to v45");
}

TEST(versions, have_the_facts_that_a_client_needs) {
  const auto& v51 = *judge_version("51.1.0").facts;
  const auto& v53 = *judge_version("53.0.0").facts;
  const auto& v54 = *judge_version("54.0.0").facts;
  EXPECT_TRUE(v51.boot_of_paused_resumes && !v53.boot_of_paused_resumes && !v54.boot_of_paused_resumes);
  EXPECT_TRUE(!v51.actual_size_counts_virtio_mem && v53.actual_size_counts_virtio_mem);
  EXPECT_TRUE(!v51.missing_vm_is_404 && v53.missing_vm_is_404 && v54.missing_vm_is_404);
  EXPECT_TRUE(v51.second_net_remove_kills && !v53.second_net_remove_kills && !v54.second_net_remove_kills);
  EXPECT_TRUE(!v51.second_remove_is_error && v53.second_remove_is_error && !v54.second_remove_is_error);
  EXPECT_TRUE(!v53.unknown_device_is_404 && v54.unknown_device_is_404);
  EXPECT_EQ(v53.most_request_body_bytes, 51'200u);
  EXPECT_EQ(v54.most_request_body_bytes, 4u << 20);
  EXPECT_FALSE(judge_version("46.0").facts->errors_are_arrays);
  EXPECT_TRUE(judge_version("47.0").facts->errors_are_arrays);
  EXPECT_FALSE(judge_version("45.0").facts->pending_vcpu_removal_is_429);
}

TEST(versions, that_are_too_old_or_none_are_refused_and_newer_ones_warned_of) {
  auto old = judge_version("41.0.0");
  EXPECT_EQ(old.facts, nullptr);
  EXPECT_EQ(old.refusal.find("Cloud Hypervisor 41.0.0: it is too old"), 0u) << old.refusal;
  EXPECT_NE(old.refusal.find("use v42 or later"), std::string::npos);
  for (std::string_view none : {"", "v", "dev", "53", "-1.0", "99999999999999999999.0", "\x1b[31m"}) {
    EXPECT_EQ(judge_version(none).facts, nullptr) << none;
    EXPECT_NE(judge_version(none).refusal, "") << none;
  }
  auto newer = judge_version("60.1.0");
  ASSERT_NE(newer.facts, nullptr);
  EXPECT_EQ(newer.facts->name, "v54");
  EXPECT_NE(newer.warning.find("newer than what is known"), std::string::npos);
}

} // namespace
} // namespace caisson::cloud_hypervisor
