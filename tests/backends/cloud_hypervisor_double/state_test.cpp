// The state machine alone, without sockets: random walks against the table of what each call answers in each state, and
// against small models of what a resize does.

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <map>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "backends/cloud-hypervisor/double/model.hpp"
#include "tests/backends/cloud_hypervisor_double/fake_host.hpp"

namespace caisson::cloud_hypervisor::tests {
namespace {

using api_double::json;
using api_double::profile;

constexpr std::uint64_t mib = 1u << 20;

/// A model of its own with everything that it needs.
struct bench {
  explicit bench(profile p, const std::string& faults = "guest=none") : as{p} {
    api_double::model::settings s;
    s.as = p;
    if (const auto wrong = s.faults.set_all(faults); !wrong.empty())
      throw std::invalid_argument{wrong};
    vmm = std::make_unique<api_double::model>(s, host, time);
  }

  api_double::reply call(const std::string& endpoint, const std::string& body = {}) {
    const bool get = endpoint == "vmm.ping" || endpoint == "vm.info" || endpoint == "vm.counters";
    return vmm->handle({get ? "GET" : "PUT", "/api/v1/" + endpoint,
                        body.empty() ? std::nullopt : std::optional{body}, {}});
  }
  json info() { return json::parse(call("vm.info").body.value()); }

  profile as;
  fake_host host;
  backends::simulated::timeline time;
  std::unique_ptr<api_double::model> vmm;
};

std::string config(const json& memory, std::uint32_t boot_vcpus = 1, std::uint32_t max_vcpus = 4) {
  return json{{"cpus", json{{"boot_vcpus", boot_vcpus}, {"max_vcpus", max_vcpus}}},
              {"memory", memory},
              {"payload", json{{"kernel", "/k"}}},
              {"console", json{{"mode", "Off"}}}}
      .dump();
}

enum state { empty, created, running, paused };

struct cell {
  int code;
  state next;
};

struct row {
  std::string endpoint, body;
  cell in[4]; ///< in EMPTY, CREATED, RUNNING, PAUSED: as v53.0 answers
};

/// The table, as v53.0 has it.
const std::vector<row>& table() {
  static const std::vector<row> rows{
      {"vmm.ping", "", {{200, empty}, {200, created}, {200, running}, {200, paused}}},
      {"vm.create", config({{"size", 256 * mib}}), {{204, created}, {500, created}, {500, running}, {500, paused}}},
      {"vm.boot", "", {{404, empty}, {204, running}, {500, running}, {500, paused}}},
      {"vm.info", "", {{404, empty}, {200, created}, {200, running}, {200, paused}}},
      {"vm.counters", "", {{500, empty}, {500, created}, {200, running}, {200, paused}}},
      {"vm.pause", "", {{500, empty}, {500, created}, {204, paused}, {500, paused}}},
      {"vm.resume", "", {{500, empty}, {500, created}, {500, running}, {204, running}}},
      {"vm.shutdown", "", {{500, empty}, {500, created}, {204, created}, {204, created}}},
      {"vm.reboot", "", {{404, empty}, {404, created}, {204, running}, {204, running}}},
      {"vm.power-button", "", {{500, empty}, {500, created}, {204, running}, {204, paused}}},
      {"vm.nmi", "", {{500, empty}, {500, created}, {204, running}, {204, paused}}},
      {"vm.delete", "", {{204, empty}, {204, empty}, {204, empty}, {204, empty}}},
      {"vm.resize", "{}", {{404, empty}, {204, created}, {204, running}, {204, paused}}},
      {"vm.resize-zone", R"({"id":"x","desired_ram":1})", {{404, empty}, {500, created}, {500, running}, {500, paused}}},
      {"vm.resize-disk", R"({"id":"x","desired_size":1})", {{404, empty}, {500, created}, {500, running}, {500, paused}}},
      {"vm.add-disk", R"({"path":"/d","id":"d"})", {{404, empty}, {204, created}, {200, running}, {200, paused}}},
      {"vm.remove-device", R"({"id":"nope"})", {{404, empty}, {500, created}, {500, running}, {500, paused}}},
      {"vm.snapshot", R"({"destination_url":"file:///s"})",
       {{500, empty}, {500, created}, {500, running}, {204, paused}}},
      {"vm.restore", R"({"source_url":"file:///s"})", {{204, paused}, {500, created}, {500, running}, {500, paused}}},
  };
  return rows;
}

/// What another release answers differently.
cell in_release(const row& r, state now, profile p) {
  auto c = r.in[now];
  if (p == profile::v51_1) {
    if (c.code == 404)
      c.code = 500;
    if (r.endpoint == "vm.boot" && now == paused)
      c = {204, running};
  }
  const bool booted = now == running || now == paused;
  if (p == profile::head && c.code == 500 &&
      (r.endpoint == "vm.remove-device" || (r.endpoint == "vm.resize-disk" && booted)))
    c.code = 404;
  return c;
}

profile any_profile() {
  return *rc::gen::element(profile::v51_1, profile::v53_0, profile::head);
}

void walk() {
  bench b{any_profile()};
  b.host.snapshot_config = config({{"size", 256 * mib}});
  const auto steps = *rc::gen::container<std::vector<std::size_t>>(rc::gen::inRange<std::size_t>(0, table().size()));
  state now = empty;
  bool has_disk = false;
  for (const auto step : steps) {
    const auto& r = table()[step];
    auto expected = in_release(r, now, b.as);
    if (r.endpoint == "vm.add-disk" && now != empty && has_disk)
      expected.code = b.as == profile::head ? 409 : 500; // its identifier is taken
    const auto got = b.call(r.endpoint, r.body);
    RC_LOG() << r.endpoint << " in state " << now << ": " << got.code << " " << got.body.value_or("") << "\n";
    RC_ASSERT(got.code == expected.code);
    RC_ASSERT(got.body.has_value() == (got.code != 204));
    if (r.endpoint == "vm.add-disk" && got.code < 300)
      has_disk = true;
    now = expected.next;
    if (now == empty)
      has_disk = false;
    const auto info = b.call("vm.info");
    if (now == empty) {
      RC_ASSERT(info.code == (b.as == profile::v51_1 ? 500 : 404));
      continue;
    }
    const auto shown = json::parse(*info.body);
    const std::map<state, std::string> names{{created, "Created"}, {running, "Running"}, {paused, "Paused"}};
    RC_ASSERT(shown["state"] == names.at(now));
    const auto tree = shown.value("device_tree", json(nullptr)); // absent or null without a VM
    RC_ASSERT(tree.is_object() == (now != created));
  }
}

TEST(states, random_walks_follow_the_table) {
  ASSERT_TRUE(rc::check("every call answers what the table says", walk));
}

TEST(states, acpi_memory_follows_its_rules) {
  ASSERT_TRUE(rc::check("vm.resize desired_ram, method Acpi", [] {
    bench b{profile::v53_0};
    const std::uint64_t boot = *rc::gen::inRange<std::uint64_t>(1, 40) * 128 * mib;
    const std::uint64_t room = *rc::gen::inRange<std::uint64_t>(1, 40) * 128 * mib;
    RC_ASSERT(b.call("vm.create", config({{"size", boot}, {"hotplug_size", room}})).code == 204);
    RC_ASSERT(b.call("vm.boot").code == 204);
    std::uint64_t current = boot, shown = boot;
    int slots = 0;
    const auto wishes = *rc::gen::container<std::vector<std::uint64_t>>(rc::gen::inRange<std::uint64_t>(0, 90));
    for (const auto w : wishes) {
      const auto desired = w * 64 * mib;
      const auto got = b.call("vm.resize", json{{"desired_ram", desired}}.dump());
      std::string refusal;
      if (desired > current) {
        if (slots == 8)
          refusal = "No ACPI slot available";
        else if ((desired - current) % (128 * mib) != 0)
          refusal = "The requested hotplug memory addition is not a valid size";
        else if (desired - boot > room)
          refusal = "Not enough space in the hotplug RAM region";
      }
      if (refusal.empty()) {
        RC_ASSERT(got.code == 204);
        if (desired > current) {
          current = desired;
          ++slots;
        }
        shown = desired; // also where nothing happened: the lie
      } else {
        RC_ASSERT(got.code == 500);
        RC_ASSERT(got.body->find(refusal) != std::string::npos);
      }
      RC_ASSERT(b.info()["config"]["memory"]["size"] == shown);
      RC_ASSERT(b.info()["memory_actual_size"] == shown);
    }
  }));
}

TEST(states, virtio_mem_follows_its_rules) {
  ASSERT_TRUE(rc::check("vm.resize desired_ram, method VirtioMem", [] {
    bench b{any_profile()};
    const std::uint64_t boot = 512 * mib, region = *rc::gen::inRange<std::uint64_t>(1, 16) * 128 * mib;
    RC_ASSERT(b.call("vm.create", config({{"size", boot}, {"hotplug_size", region}, {"hotplug_method", "VirtioMem"}})).code ==
              204);
    RC_ASSERT(b.call("vm.boot").code == 204);
    std::uint64_t requested = 0, shown = 0;
    const auto wishes = *rc::gen::container<std::vector<std::uint64_t>>(rc::gen::inRange<std::uint64_t>(490, 2800));
    for (const auto mibs : wishes) {
      const auto desired = mibs * mib;
      const auto got = b.call("vm.resize", json{{"desired_ram", desired}}.dump());
      const bool below = desired < boot;
      const bool fine = !below && desired - boot != requested && desired - boot <= region && mibs % 2 == 0;
      if (below && b.as == profile::v51_1) {
        RC_ASSERT(got.code == 204); // the device keeps what it had, and the configuration forgets it
        shown = 0;
      } else {
        RC_ASSERT(got.code == (fine ? 204 : 500));
        if (fine)
          requested = shown = desired - boot;
      }
      const auto memory = b.info()["config"]["memory"];
      RC_ASSERT(memory["size"] == boot);
      const auto plugged = memory.value("hotplugged_size", json(nullptr)); // absent or null for none
      RC_ASSERT((plugged.is_null() ? 0 : plugged.get<std::uint64_t>()) == shown);
    }
  }));
}

TEST(states, vcpus_wait_for_a_guest_that_gives_none_back) {
  ASSERT_TRUE(rc::check("vm.resize desired_vcpus", [] {
    bench b{profile::v53_0};
    RC_ASSERT(b.call("vm.create", config({{"size", 256 * mib}}, 2, 6)).code == 204);
    RC_ASSERT(b.call("vm.boot").code == 204);
    std::uint32_t present = 2, shown = 2;
    bool pending = false;
    for (const auto desired : *rc::gen::container<std::vector<std::uint32_t>>(rc::gen::inRange<std::uint32_t>(0, 9))) {
      const auto got = b.call("vm.resize", json{{"desired_vcpus", desired}}.dump());
      int code = 204;
      if (desired != present) {
        code = desired == 0 ? 500 : pending ? 429 : desired > 6 ? 500 : 204;
        if (code == 204 && desired > present)
          present = desired;
        else if (code == 204)
          pending = true;
      }
      if (code == 204)
        shown = desired;
      RC_ASSERT(got.code == code);
      if (code == 429)
        RC_ASSERT(*got.body == "[\"Too Many Requests\"]");
      RC_ASSERT(b.info()["config"]["cpus"]["boot_vcpus"] == shown);
    }
  }));
}

TEST(states, a_boot_that_fails_late_leaves_a_vm_that_only_shutdown_and_delete_end) {
  bench b{profile::v53_0, "guest=none,boot_fails=1"};
  b.call("vm.create", config({{"size", 256 * mib}}));
  EXPECT_EQ(b.call("vm.boot").code, 500);
  EXPECT_EQ(b.info()["state"], "Created");
  EXPECT_TRUE(b.info().contains("device_tree"));
  EXPECT_NE(b.call("vm.boot").body->find("VM is already created"), std::string::npos);
  EXPECT_EQ(b.call("vm.pause").code, 204);
  EXPECT_EQ(b.info()["state"], "Paused");
  EXPECT_EQ(b.call("vm.shutdown").code, 204);
  EXPECT_FALSE(b.info().contains("device_tree"));
  EXPECT_EQ(b.call("vm.boot").code, 204);
  EXPECT_EQ(b.host.events.back(), "vm/booted");
}

TEST(states, validation_answers_400_and_409_since_v54_and_500_before) {
  for (const auto p : {profile::v51_1, profile::v53_0, profile::head}) {
    bench b{p};
    b.call("vm.create", config({{"size", 256 * mib}}, 5, 4));
    const auto got = b.call("vm.boot");
    EXPECT_EQ(got.code, p == profile::head ? 400 : 500);
    EXPECT_EQ(*got.body, "[\"Error from API\",\"The VM could not boot\",\"Failed to validate config\","
                         "\"Max CPUs (4) lower than boot CPUs (5)\"]");
    bench twice{p};
    twice.call("vm.create", config({{"size", 256 * mib}}));
    twice.call("vm.add-disk", R"({"path":"/d","id":"a"})");
    EXPECT_EQ(twice.call("vm.add-disk", R"({"path":"/e","id":"a"})").code, p == profile::head ? 409 : 500);
  }
}

TEST(states, a_removed_device_may_be_removed_again_only_since_v54) {
  for (const auto p : {profile::v53_0, profile::head}) {
    bench b{p};
    b.call("vm.create", config({{"size", 256 * mib}}));
    b.call("vm.boot");
    EXPECT_EQ(*b.call("vm.add-disk", R"({"path":"/d"})").body, R"({"id":"_disk0","bdf":"0000:00:02.0"})");
    EXPECT_EQ(b.call("vm.remove-device", R"({"id":"_disk0"})").code, 204);
    EXPECT_EQ(b.call("vm.remove-device", R"({"id":"_disk0"})").code, p == profile::head ? 204 : 500);
    EXPECT_EQ(b.call("vm.remove-device", R"({"id":"nope"})").code, p == profile::head ? 404 : 500);
  }
}

TEST(states, arm64_has_no_vcpu_hotplug) {
  bench b{profile::v53_0, "guest=none,arch=aarch64"};
  b.call("vm.create", config({{"size", 256 * mib}}));
  b.call("vm.boot");
  const auto got = b.call("vm.resize", R"({"desired_vcpus":2})");
  EXPECT_EQ(got.code, 500);
  EXPECT_NE(got.body->find("Error creating vCPU"), std::string::npos);
}

TEST(states, memory_before_v52_counts_what_was_requested_and_not_what_is_plugged) {
  for (const auto p : {profile::v51_1, profile::v53_0}) {
    bench b{p};
    b.call("vm.create", config({{"size", 256 * mib}, {"hotplug_size", 256 * mib}, {"hotplug_method", "VirtioMem"}}));
    b.call("vm.boot");
    EXPECT_EQ(b.call("vm.resize", json{{"desired_ram", 384 * mib}}.dump()).code, 204);
    EXPECT_EQ(b.info()["memory_actual_size"], (p == profile::v51_1 ? 384 : 256) * mib);
  }
}

TEST(states, a_snapshot_is_three_files_and_restores_paused) {
  bench b{profile::v53_0};
  b.call("vm.create", config({{"size", 256 * mib}}));
  b.call("vm.boot");
  b.call("vm.pause");
  EXPECT_EQ(b.call("vm.snapshot", R"({"destination_url":"file:///s"})").code, 204);
  ASSERT_EQ(b.host.written.size(), 3u);
  bench other{profile::v53_0};
  other.host.snapshot_config = b.host.written["/s/config.json"];
  EXPECT_EQ(other.call("vm.restore", R"({"source_url":"file:///s"})").code, 204);
  EXPECT_EQ(other.info()["state"], "Paused");
  EXPECT_EQ(other.call("vm.resume").code, 204);
}

} // namespace
} // namespace caisson::cloud_hypervisor::tests
