// Replies and events as bytes: what is read from good ones, and that broken ones give an error and nothing else.

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <nlohmann/json.hpp>

#include <fstream>

#include "backends/cloud-hypervisor/events.hpp"
#include "backends/cloud-hypervisor/http_reply.hpp"
#include "backends/cloud-hypervisor/reply.hpp"

namespace caisson::cloud_hypervisor {
namespace {

// ---- HTTP

const std::string not_created = "HTTP/1.1 404 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n"
                                "Content-Type: application/json\r\nContent-Length: 70\r\n\r\n"
                                R"(["Error from API","The VM info is not available","VM is not created"])" "\n";

// Cuts a text into pieces at random places.
std::vector<std::string> pieces_of(const std::string& text) {
  std::vector<std::string> out;
  for (std::size_t at = 0; at < text.size();) {
    auto size = *rc::gen::inRange<std::size_t>(1, 40);
    out.push_back(text.substr(at, size));
    at += size;
  }
  return out;
}

RC_GTEST_PROP(reply_reader, reads_the_same_however_the_bytes_come, ()) {
  reply_reader reader;
  auto state = reply_reader::state::wants_more;
  for (const auto& piece : pieces_of(not_created)) {
    RC_ASSERT(state == reply_reader::state::wants_more);
    state = reader.feed(piece);
  }
  RC_ASSERT(state == reply_reader::state::complete);
  auto reply = reader.take();
  RC_ASSERT(reply.status == 404);
  RC_ASSERT(reply.chain.size() == 3u);
  RC_ASSERT(reply.says("not created"));
}

RC_GTEST_PROP(reply_reader, survives_any_bytes, (std::string bytes)) {
  reply_reader reader;
  reader.feed(*rc::gen::element<std::string>("", "HTTP/1.1 200 \r\n", "HTTP/1.1 200 \r\nContent-Length: 10\r\n\r\n"));
  reader.feed(bytes);
  RC_ASSERT(reader.end() != reply_reader::state::wants_more);
}

TEST(reply_reader, ends_where_the_connection_does_without_a_length) {
  reply_reader reader;
  EXPECT_EQ(reader.feed("HTTP/1.1 500 \r\n\r\n[\"a\",\"b\"]"), reply_reader::state::wants_more);
  EXPECT_EQ(reader.end(), reply_reader::state::complete);
  EXPECT_EQ(reader.take().chain, (std::vector<std::string>{"a", "b"}));
}

TEST(reply_reader, sees_that_a_body_is_too_long_whatever_comes_with_the_headers) {
  for (std::size_t more : {0, 1, 100, 5000, 100'000}) {
    reply_reader reader;
    EXPECT_EQ(reader.feed("HTTP/1.1 200 \r\nContent-Length: 4194305\r\n\r\n" + std::string(more, 'x')),
              reply_reader::state::broken);
    EXPECT_EQ(reader.error(), "its body is longer than 4194304 bytes");
  }
}

TEST(reply_reader, takes_no_chunks) {
  reply_reader reader;
  EXPECT_EQ(reader.feed("HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"),
            reply_reader::state::broken);
  EXPECT_EQ(reader.error().find("it comes in chunks"), 0u);
}

TEST(reply_reader, does_not_wait_for_more_of_what_can_be_no_reply) {
  reply_reader reader;
  EXPECT_EQ(reader.feed("\x01\r\n\r\n"), reply_reader::state::broken);
  EXPECT_EQ(reader.error(), "it is no HTTP reply (its first line is \"\\x01\")");
}

TEST(error_chain, reads_every_form_that_versions_have) {
  using chain = std::vector<std::string>;
  EXPECT_EQ(read_error_chain(R"(["Too Many Requests"])"), chain{"Too Many Requests"});
  EXPECT_EQ(read_error_chain("ApiError(VmNotCreated)"), chain{"ApiError(VmNotCreated)"}); // v46 and before
  EXPECT_EQ(read_error_chain("{ \"error\": \"Too many open connections\" }"), chain{"Too many open connections"});
  EXPECT_EQ(read_error_chain("{ \"error\": \"Request payload with size 9 is larger\nAll previous\" }"),
            chain{"Request payload with size 9 is larger"});
  EXPECT_EQ(read_error_chain("{\"error\":\"other spaces\"}"), chain{"other spaces"});
  EXPECT_EQ(read_error_chain(""), chain{});
  EXPECT_EQ(read_error_chain(R"(["a",1,null,"b"])"), (chain{"a", "b"}));
}

TEST(error_chain, is_bounded_and_can_be_shown) {
  std::string many = "[";
  for (int i = 0; i < 1000; ++i)
    many += "\"" + std::string(5000, 'x') + "\",";
  many += "\"end\"]";
  auto chain = read_error_chain(many);
  EXPECT_EQ(chain.size(), 32u);
  for (const auto& each : chain)
    EXPECT_LE(each.size(), 1024u);
  EXPECT_EQ(read_error_chain("[\"\\u001b[31m\\n\\n\xc3\xa9\\\\\"]").at(0), "\\x1b[31m\\x0a\\x0a\\xc3\\xa9\\\\");
  http_reply reply{.status = 500, .chain = chain};
  EXPECT_LE(reply.text().size(), 4096u);
}

TEST(answers, have_a_meaning_for_every_status_of_the_server) {
  EXPECT_EQ(answer_of(200), answer_kind::done);
  EXPECT_EQ(answer_of(204), answer_kind::done);
  EXPECT_EQ(answer_of(400), answer_kind::invalid);
  EXPECT_EQ(answer_of(404), answer_kind::missing);
  EXPECT_EQ(answer_of(409), answer_kind::conflict);
  EXPECT_EQ(answer_of(429), answer_kind::busy);
  EXPECT_EQ(answer_of(500), answer_kind::failed);
  EXPECT_EQ(answer_of(301), answer_kind::strange);
  EXPECT_EQ(answer_of(0), answer_kind::strange);
}

// ---- bodies

TEST(replies, ping) {
  auto ping = parse_ping(R"({"build_version":"v53.0.0","version":"53.0.0","pid":4242,"features":["io_uring","kvm"]})");
  ASSERT_TRUE(ping) << ping.error;
  EXPECT_EQ(ping->version, "53.0.0");
  EXPECT_EQ(ping->pid, 4242);
  EXPECT_EQ(ping->features.size(), 2u);
  EXPECT_EQ(parse_ping(R"({"pid":1})").error, "vmm.ping.version: it is missing");
  EXPECT_EQ(parse_ping(R"({"version":"1.0","pid":-1})").error,
            "vmm.ping.pid: expected a whole number from 0 to 4294967295, got -1");
  EXPECT_EQ(parse_ping("").error, "vmm.ping: expected JSON, got \"\"");
  EXPECT_EQ(parse_ping("[]").error, "vmm.ping: expected an object, got a list");
}

const std::string running = R"({"config":{"cpus":{"boot_vcpus":2,"max_vcpus":4,"topology":null},
  "memory":{"size":536870912,"hotplug_method":"VirtioMem","hotplug_size":4294967296,"hotplugged_size":268435456},
  "payload":{"kernel":"/k"},"disks":[{"id":"_disk0","path":"/a.img"},{"id":"d1","path":"/b.img"}],
  "net":[{"id":"n0","tap":"tap0"},{"id":"n1"}],"fs":[{"id":"f0","tag":"t","socket":"/f.sock"}],
  "balloon":{"size":18446744073709551615,"free_page_reporting":true},
  "serial":{"file":"/dev/pts/3","mode":"Pty"},"console":{"mode":"Off"},"vsock":{"id":"v0","cid":3,"socket":"/v.sock"}},
  "state":"Running","memory_actual_size":805306368,"device_tree":{
    "_disk0":{"id":"_disk0","resources":[],"parent":"_virtio-pci-_disk0","children":[]},
    "_virtio-pci-_disk0":{"id":"_virtio-pci-_disk0","resources":[{"PciBar":{}}],"children":["_disk0"],"pci_bdf":"0000:00:02.0"},
    "_virtio-pci-n0":{"children":["n0"],"pci_bdf":"0000:00:05.0"},"odd":7,"odder":{"children":{},"pci_bdf":[]}}})";

TEST(replies, info_of_a_running_vm) {
  auto info = parse_info(running);
  ASSERT_TRUE(info) << info.error;
  EXPECT_EQ(info->state, vm_state::running);
  EXPECT_EQ(info->boot_vcpus, 2u);
  EXPECT_EQ(info->max_vcpus, 4u);
  EXPECT_EQ(info->memory_bytes, 512u << 20);
  EXPECT_EQ(info->hotplug_bytes, std::uint64_t{4} << 30);
  EXPECT_EQ(info->hotplugged_bytes, 256u << 20);
  EXPECT_TRUE(info->virtio_mem);
  EXPECT_EQ(info->memory_actual_bytes, 768u << 20);
  EXPECT_EQ(info->balloon_bytes, ~std::uint64_t{0}) << "numbers beyond int64 survive";
  EXPECT_TRUE(info->free_page_reporting);
  EXPECT_EQ(info->serial_path, "/dev/pts/3");
  EXPECT_TRUE(info->has_device_tree);
  ASSERT_EQ(info->devices.size(), 6u);
  EXPECT_EQ(info->devices[0].bdf, "0000:00:02.0");
  EXPECT_EQ(info->devices[0].host, "/a.img");
  EXPECT_EQ(info->devices[1].bdf, "");
  EXPECT_EQ(info->devices[2].kind, "net");
  EXPECT_EQ(info->devices[2].host, "tap0");
  EXPECT_EQ(info->devices[2].bdf, "0000:00:05.0");
  EXPECT_EQ(info->devices[4].kind, "share");
  EXPECT_EQ(info->devices[5].kind, "vsock");
}

TEST(replies, info_names_the_place_that_is_wrong) {
  EXPECT_EQ(parse_info(R"({"config":{"memory":{"size":1}}})").error, "vm.info.state: it is missing");
  EXPECT_EQ(parse_info(R"({"state":"Created"})").error, "vm.info.config: it is missing");
  EXPECT_EQ(parse_info(R"({"state":"Created","config":{"memory":{"size":"512M"}}})").error,
            "vm.info: config.memory.size: expected a whole number from 0 to 18446744073709551615, got \"512M\"");
  EXPECT_EQ(parse_info(R"({"state":"Created","config":{"memory":{"size":1,"hotplug_method":"acpi"}}})").error,
            "vm.info: config.memory.hotplug_method: expected Acpi or VirtioMem, got \"acpi\"");
  EXPECT_EQ(parse_info(R"({"state":"Created","config":{"memory":{"size":1},"disks":[{},3]}})").error,
            "vm.info: config.disks[1]: expected an object, got 3");
  EXPECT_EQ(parse_info(R"({"state":"Created","config":{"memory":{"size":1}},"device_tree":[]})").error,
            "vm.info.device_tree: expected an object, got a list");
  auto other = parse_info(R"({"state":"Dreaming","config":{"memory":{"size":1}}})");
  ASSERT_TRUE(other);
  EXPECT_EQ(other->state, vm_state::other);
  EXPECT_EQ(other->state_text, "Dreaming");
}

TEST(replies, devices_and_counters) {
  EXPECT_EQ(parse_pci_device(R"({"id":"_net5","bdf":"0000:00:04.0"})")->id, "_net5");
  EXPECT_EQ(parse_pci_device(R"({"id":"_net5","bdf":"slot 4"})").error,
            "vm.add.bdf: expected a PCI address such as 0000:00:05.0, got \"slot 4\"");
  auto counters = parse_counters(R"({"_disk0":{"read_latency_min":18446744073709551615,"read_bytes":0}})");
  ASSERT_TRUE(counters) << counters.error;
  ASSERT_EQ(counters->size(), 2u);
  EXPECT_EQ((*counters)[1].name, "read_latency_min");
  EXPECT_EQ((*counters)[1].value, ~std::uint64_t{0});
  EXPECT_FALSE(parse_counters(R"({"_disk0":{"read_bytes":-1}})"));
  EXPECT_FALSE(parse_counters(R"({"_disk0":7})"));
}

TEST(replies, all_that_were_recorded_are_understood) {
  std::ifstream in{CAISSON_CH_RECORDING};
  ASSERT_TRUE(in) << CAISSON_CH_RECORDING;
  int infos = 0;
  int counters = 0;
  int devices = 0;
  int errors = 0;
  for (std::string line; std::getline(in, line);) {
    auto each = nlohmann::json::parse(line);
    if (!each.contains("reply") || !each["reply"].is_string() || !each["code"].is_string())
      continue;
    const auto body = each["reply"].get<std::string>();
    const auto code = each["code"].get<std::string>();
    const auto verb = each["ep"].get<std::string>();
    if (code == "200" && verb == "vm.info") {
      auto info = parse_info(body);
      EXPECT_TRUE(info) << info.error;
      EXPECT_NE(info ? info->state : vm_state::other, vm_state::other) << body;
      ++infos;
    } else if (code == "200" && verb == "vm.counters") {
      EXPECT_EQ(parse_counters(body).error, "") << body;
      ++counters;
    } else if (code == "200" && verb.starts_with("vm.add-")) {
      EXPECT_EQ(parse_pci_device(body).error, "") << body;
      ++devices;
    } else if (code >= "400" && code <= "599" && !body.empty()) {
      EXPECT_FALSE(read_error_chain(body).empty()) << body;
      ++errors;
    }
  }
  EXPECT_GT(infos, 20);
  EXPECT_GT(counters, 0);
  EXPECT_GT(devices, 3);
  EXPECT_GT(errors, 100);
}

RC_GTEST_PROP(replies, a_changed_byte_gives_a_value_or_an_error, ()) {
  auto text = running;
  text[*rc::gen::inRange<std::size_t>(0, text.size())] = *rc::gen::arbitrary<char>();
  auto info = parse_info(text);
  RC_ASSERT(info.value.has_value() == info.error.empty());
}

// ---- events

std::string event_text(int nanos, const std::string& source, const std::string& event, const std::string& properties) {
  return "{\n  \"timestamp\": {\n    \"secs\": 7,\n    \"nanos\": " + std::to_string(nanos) + "\n  },\n  \"source\": \"" +
         source + "\",\n  \"event\": \"" + event + "\",\n  \"properties\": " + properties + "\n}\n\n";
}

const std::string removed =
    event_text(12345678, "vm", "device-removed", "{\n    \"bdf\": \"0000:00:05.0\",\n    \"id\": \"dd\"\n  }");

RC_GTEST_PROP(event_parser, reads_the_same_however_the_bytes_come, ()) {
  const auto text = event_text(1, "vm", "booting", "null") + event_text(2, "vm", "booted", "null") + removed;
  event_parser parser;
  std::vector<vmm_event> all;
  for (const auto& piece : pieces_of(text))
    for (auto& each : parser.feed(piece))
      all.push_back(std::move(each));
  RC_ASSERT(all.size() == 3u);
  RC_ASSERT(all[1].is("vm", "booted"));
  RC_ASSERT(all[1].secs == 7u && all[1].nanos == 2u);
  RC_ASSERT(all[2].property("id") == "dd" && all[2].property("bdf") == "0000:00:05.0" && all[2].property("x").empty());
  RC_ASSERT(parser.skipped() == 0u && parser.waiting() == 0u);
}

TEST(event_parser, passes_over_what_is_no_event_and_counts_it) {
  event_parser parser;
  for (std::string_view bad : {"garbage\n\n", "{}\n\n", "[1,2]\n\n", "{\"source\":\"vm\",\"event\":7,\"timestamp\":{}}\n\n",
                               "{\"timestamp\":{\"secs\":-1,\"nanos\":0},\"source\":\"vm\",\"event\":\"x\"}\n\n"})
    EXPECT_TRUE(parser.feed(bad).empty()) << bad;
  EXPECT_EQ(parser.skipped(), 5u);
  auto events = parser.feed("\n\n\n" + removed);
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(parser.skipped(), 5u);
}

TEST(event_parser, finds_a_whole_event_behind_a_torn_one) {
  event_parser parser;
  auto events = parser.feed(removed.substr(0, 60) + "\n" + removed);
  ASSERT_EQ(events.size(), 1u);
  EXPECT_TRUE(events[0].is("vm", "device-removed"));
  EXPECT_EQ(parser.skipped(), 1u);
}

TEST(event_parser, is_bounded) {
  event_parser parser;
  for (int i = 0; i < 100; ++i) {
    EXPECT_TRUE(parser.feed("{\"" + std::string(10'000, 'x')).empty());
    EXPECT_LE(parser.waiting(), event_parser::most_event_bytes);
  }
  EXPECT_EQ(parser.skipped(), 1u);
  EXPECT_EQ(parser.feed("\n\n" + removed).size(), 1u);
  EXPECT_EQ(parser.feed("{\"" + std::string(100'000, 'x') + "\n\n" + removed).size(), 1u);
  EXPECT_EQ(parser.skipped(), 2u);
}

} // namespace
} // namespace caisson::cloud_hypervisor
