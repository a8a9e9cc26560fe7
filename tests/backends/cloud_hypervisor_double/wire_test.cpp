// The wire, byte by byte: what is accepted, what is refused and how, and what a client must not do.

#include <gtest/gtest.h>
#include <fcntl.h>
#include <signal.h>


#include "tests/backends/cloud_hypervisor_double/double_process.hpp"

namespace caisson::cloud_hypervisor::tests {
namespace {

const std::string ping = "GET /api/v1/vmm.ping HTTP/1.1\r\n\r\n";
const std::string no_content = "HTTP/1.1 204 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\r\n";

std::string mistake(const std::string& what) {
  const auto body = "{ \"error\": \"" + what + "\nAll previous unanswered requests will be dropped.\" }";
  return "HTTP/1.1 400 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\nContent-Type: application/json\r\n"
         "Content-Length: " +
         std::to_string(body.size()) + "\r\n\r\n" + body;
}

std::string refused(const std::string& code, const std::string& body) {
  return "HTTP/1.1 " + code +
         " \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\nContent-Type: application/json\r\n"
         "Content-Length: " +
         std::to_string(body.size()) + "\r\n\r\n" + body;
}

class wire : public ::testing::Test {
protected:
  double_process& vmm(std::vector<std::string> arguments = {}) {
    if (!vmm_)
      vmm_.emplace(at_.path("vmm"), std::move(arguments));
    return *vmm_;
  }

  /// What comes back for these bytes on a new connection: one reply.
  std::string back(const std::string& bytes) {
    stream s{vmm().socket()};
    s.send(bytes);
    const auto a = read_reply(s);
    return a.end.empty() ? a.head + a.body : "<" + a.end + ">";
  }

  std::string code(const std::string& bytes) {
    const auto text = back(bytes);
    return text.size() > 12 ? text.substr(9, 3) : text;
  }

  scratch at_;
  std::optional<double_process> vmm_;
};

TEST_F(wire, a_ping_and_an_empty_success_look_exactly_so) {
  const auto pong = back(ping);
  const auto body = pong.substr(pong.find("\r\n\r\n") + 4);
  EXPECT_EQ(pong, refused("200", body));
  const auto parsed = json::parse(body);
  EXPECT_EQ(parsed["pid"], vmm().pid());
  EXPECT_EQ(parsed["version"], "53.0.0");
  EXPECT_EQ(body.find("\"build_version\""), 1u);
  EXPECT_EQ(back("PUT /api/v1/vm.delete HTTP/1.1\r\n\r\n"), no_content);
  EXPECT_EQ(back("PUT /api/v1/vmm.shutdown HTTP/1.1\r\n\r\n"), refused("200", ""));
  EXPECT_EQ(vmm().wait(), 0);
}

TEST_F(wire, methods_and_paths_are_taken_literally) {
  const auto bad = refused("400", "[\"Bad Request\"]"), nowhere = refused("404", "[\"Not Found\"]");
  EXPECT_EQ(back("GET /api/v1/vm.boot HTTP/1.1\r\n\r\n"), bad);
  EXPECT_EQ(back("PUT /api/v1/vm.info HTTP/1.1\r\n\r\n"), bad);
  EXPECT_EQ(back("PATCH /api/v1/vm.info HTTP/1.1\r\n\r\n"), bad);
  EXPECT_EQ(back("PATCH /api/v1/vm.boot HTTP/1.1\r\n\r\n"), refused("400", ""));
  for (const auto* verb : {"POST", "DELETE", "HEAD", "OPTIONS", "get"})
    EXPECT_EQ(back(std::string{verb} + " /api/v1/vmm.ping HTTP/1.1\r\n\r\n"),
              mistake("Invalid HTTP Method: Unsupported HTTP method."))
        << verb;
  for (const auto* path : {"/api/v1/vmm.ping/", "/api/v1/vmm.ping?x=1", "/api/v1/nope", "/", "vmm.ping"})
    EXPECT_EQ(back(std::string{"GET "} + path + " HTTP/1.1\r\n\r\n"), nowhere) << path;
  EXPECT_EQ(code("GET http://localhost/api/v1/vmm.ping HTTP/1.1\r\n\r\n"), "200");
}

TEST_F(wire, versions_and_headers) {
  EXPECT_EQ(code("GET /api/v1/vmm.ping HTTP/1.0\r\n\r\n"), "200");
  EXPECT_EQ(back("GET /api/v1/vmm.ping HTTP/2.0\r\n\r\n"), mistake("Invalid HTTP Version: Unsupported HTTP version."));
  const auto with = [&](const std::string& header) {
    return code("GET /api/v1/vmm.ping HTTP/1.1\r\n" + header + "\r\n\r\n");
  };
  for (const auto* fine : {"Accept: */*", "User-Agent: curl/7.88", "Accept-Encoding: gzip", "Connection: close",
                           "Content-Type: application/json; charset=utf-8", "Transfer-Encoding: gzip", "Expect: nothing",
                           "X-Odd: \"{}", "Content-Length: +0"})
    EXPECT_EQ(with(fine), "200") << fine;
  for (const auto* wrong : {"Accept-Encoding: identity;q=0", "Accept-Encoding: *;q=0", "Content-Length: many",
                            "Content-Length: -1", "no colon", "Content-Length: 4294967296", "X: \xff"})
    EXPECT_EQ(with(wrong), "400") << wrong;
  EXPECT_EQ(back("GET /api/v1/vmm.ping HTTP/1.1\r\nAccept-Encoding: gzip, *;q=0\r\n\r\n"),
            mistake("Invalid header. Reason: Invalid value. Key:Accept-Encoding; Value: *;q=0"));
  EXPECT_EQ(back("GET /api/v1/vmm.ping HTTP/1.1\r\nContent-Length: x1\r\n\r\n"),
            mistake("Invalid header. Reason: Invalid value. Key:Content-Length; Value: x1"));
}

TEST_F(wire, a_line_of_1024_bytes_is_too_long_and_many_short_ones_are_not) {
  EXPECT_EQ(back("GET /api/v1/" + std::string(1100, 'x') + " HTTP/1.1\r\n\r\n"), mistake("Invalid request."));
  EXPECT_EQ(code("GET /api/v1/vmm.ping HTTP/1.1\r\nX: " + std::string(1100, 'x') + "\r\n\r\n"), "400");
  std::string many = "GET /api/v1/vmm.ping HTTP/1.1\r\n";
  for (int i = 0; i < 200; ++i)
    many += "X-" + std::to_string(i) + ": " + std::string(50, 'y') + "\r\n";
  EXPECT_EQ(code(many + "\r\n"), "200");
}

TEST_F(wire, bodies_are_bounded_by_the_release) {
  const auto create = [&](std::size_t size) {
    const auto text = "{\"payload\":{\"cmdline\":\"" + std::string(size - 26, 'c') + "\"}}";
    return back("PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: " + std::to_string(text.size()) + "\r\n\r\n" + text);
  };
  EXPECT_EQ(create(51'200), no_content);
  EXPECT_EQ(back("PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 51201\r\n\r\n"),
            mistake("Request payload with size 51201 is larger than the limit of 51200 allowed by server."));
  double_process head{at_.path("head"), {"--profile", "head"}};
  const auto large = "{\"payload\":{\"cmdline\":\"" + std::string(60'000, 'c') + "\"}}";
  EXPECT_EQ(head.ask("PUT", "vm.create", large).code, "204");
}

TEST_F(wire, actions_take_no_body_and_others_need_one) {
  EXPECT_EQ(back(request_text("PUT", "vm.boot", "{}")), refused("400", "[\"Bad Request\"]"));
  EXPECT_EQ(back(request_text("PUT", "vm.resize")), refused("400", "[\"Bad Request\"]"));
  EXPECT_EQ(back(request_text("PUT", "vm.create")), refused("400", ""));
  EXPECT_EQ(back(request_text("PUT", "vm.create", "")), refused("400", ""));
  EXPECT_EQ(back("PUT /api/v1/vm.delete HTTP/1.1\r\nContent-Length: 0\r\n\r\n"), no_content);
}

TEST_F(wire, a_request_may_come_in_single_bytes) {
  stream s{vmm().socket()};
  for (const auto c : request_text("PUT", "vm.create", "{\"memory\":{\"size\":1048576}}"))
    ASSERT_TRUE(s.send({&c, 1}));
  EXPECT_EQ(read_reply(s).code, "204");
}

TEST_F(wire, pipelined_requests_are_answered_in_order_on_a_connection_that_stays_open) {
  stream s{vmm().socket()};
  s.send("PUT /api/v1/vm.delete HTTP/1.1\r\n\r\n" + ping + "GET /api/v1/vm.info HTTP/1.1\r\n\r\n");
  EXPECT_EQ(read_reply(s).code, "204");
  EXPECT_EQ(read_reply(s).code, "200");
  EXPECT_EQ(read_reply(s).code, "404");
  s.send(ping);
  EXPECT_EQ(read_reply(s).code, "200");
}

TEST_F(wire, what_stands_behind_a_body_is_the_next_request) {
  stream s{vmm().socket()};
  s.send("PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}surplus\r\n\r\n");
  // The mistake drops the request that was read in the same piece.
  EXPECT_EQ(read_reply(s).code, "400");
  EXPECT_EQ(vmm().ask("GET", "vm.info").code, "404");
  stream slow{vmm().socket()};
  slow.send("PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}");
  EXPECT_EQ(read_reply(slow).code, "204");
  slow.send("surplus\r\n\r\n");
  EXPECT_EQ(read_reply(slow).code, "400");
}

TEST_F(wire, a_chunked_body_is_misread_as_requests) {
  stream s{vmm().socket()};
  s.send("PUT /api/v1/vm.create HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
  EXPECT_EQ(read_reply(s).code, "400"); // no body at all
  s.send("2\r\n{}\r\n0\r\n\r\n");
  const auto a = read_reply(s);
  EXPECT_EQ(a.head + a.body, mistake("Invalid request."));
}

TEST_F(wire, an_expected_100_comes_before_the_body) {
  stream s{vmm().socket()};
  s.send("PUT /api/v1/vm.create HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
  const auto go_on = read_reply(s);
  EXPECT_EQ(go_on.head, "HTTP/1.1 100 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n");
  s.send("{}");
  EXPECT_EQ(read_reply(s).code, "204");
}

TEST_F(wire, a_mistake_leaves_the_connection_usable_where_its_reading_stood) {
  stream s{vmm().socket()};
  s.send("POST /x HTTP/1.1\r\n\r\n");
  EXPECT_EQ(read_reply(s).code, "400");
  s.send(ping);
  EXPECT_EQ(read_reply(s).code, "200");
  // After a bad header the request is still open: a further line is a header of it, an empty one ends it.
  s.send("GET /api/v1/vmm.ping HTTP/1.1\r\nContent-Length: x\r\n");
  EXPECT_EQ(read_reply(s).code, "400");
  s.send(ping);
  EXPECT_EQ(read_reply(s).code, "400");
  s.send("\r\n");
  EXPECT_EQ(read_reply(s).code, "200");
}

TEST_F(wire, a_half_closed_connection_is_dropped_without_a_reply) {
  stream s{vmm().socket()};
  vmm().signal(SIGSTOP); // so that both arrive before it looks
  s.send(ping);
  s.half_close();
  vmm().signal(SIGCONT);
  std::string how;
  EXPECT_EQ(s.rest(&how), "");
  EXPECT_NE(how, "silence");
  EXPECT_EQ(vmm().ask("GET", "vmm.ping").code, "200");
}

TEST_F(wire, a_client_that_dies_while_its_request_is_done_changes_nothing_of_it) {
  vmm({"--fault", "delay=vm.delete", "--fault", "delay_ms=200"});
  ASSERT_EQ(vmm().put("vm.create", json::object()).code, "204");
  {
    stream s{vmm().socket()};
    s.send(request_text("PUT", "vm.delete"));
    ASSERT_TRUE(vmm().await_event("vm/deleted")); // done; the reply is held back
  }
  EXPECT_EQ(vmm().ask("GET", "vm.info").code, "404");
}

TEST_F(wire, the_eleventh_connection_is_turned_away) {
  std::vector<stream> ten;
  for (int i = 0; i < 10; ++i) {
    ten.emplace_back(vmm().socket());
    ten.back().send(ping);
    ASSERT_EQ(read_reply(ten.back()).code, "200");
  }
  stream late{vmm().socket()};
  std::string how;
  EXPECT_EQ(late.rest(&how), "HTTP/1.1 503\r\nServer: Firecracker API\r\nConnection: close\r\nContent-Length: 40\r\n\r\n"
                             "{ \"error\": \"Too many open connections\" }");
  EXPECT_NE(how, "silence");
  ten.pop_back();
  ten.back().send(ping); // a round of the server later the place is free
  EXPECT_EQ(read_reply(ten.back()).code, "200");
  stream next{vmm().socket()};
  next.send(ping);
  EXPECT_EQ(read_reply(next).code, "200");
}

TEST_F(wire, descriptors_come_with_add_net_and_are_forgotten_by_create) {
  auto config = small_vm(at_);
  config["net"] = json::array({json{{"id", "first"}, {"fds", {7, 8}}}});
  ASSERT_EQ(vmm().put("vm.create", config).code, "204");
  EXPECT_FALSE(vmm().info()["config"]["net"][0].contains("fds"));
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  stream s{vmm().socket()};
  s.send_with_descriptors(request_text("PUT", "vm.add-net", "{\"id\":\"n\",\"num_queues\":2}"), {null});
  EXPECT_EQ(read_reply(s).code, "204");
  const auto net = vmm().info()["config"]["net"][1];
  ASSERT_TRUE(net.contains("fds")) << net;
  EXPECT_GT(net["fds"][0].get<int>(), 2);
  stream two{vmm().socket()};
  two.send_with_descriptors(request_text("PUT", "vm.add-net", "{\"id\":\"m\",\"num_queues\":2}"), {null, null});
  const auto a = read_reply(two);
  EXPECT_EQ(a.code, "500");
  EXPECT_NE(a.body.find("Number of queues (2) to virtio_net does not match the number of FDs (4)"), a.body.npos) << a.body;
  ::close(null);
}

TEST_F(wire, a_descriptor_that_is_no_tap_is_found_out_when_its_device_is_made) {
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  const std::string chain =
      R"~("Error from device manager","Cannot create virtio-net device","Using existing tap",)~"
      R"~("Ioctl failed (2147767506)","Inappropriate ioctl for device (os error 25)"])~";
  ASSERT_EQ(vmm().put("vm.create", small_vm(at_)).code, "204");
  stream early{vmm().socket()};
  early.send_with_descriptors(request_text("PUT", "vm.add-net", "{\"id\":\"n\"}"), {null});
  EXPECT_EQ(read_reply(early).code, "204");
  const auto boot = vmm().put("vm.boot");
  EXPECT_EQ(boot.code, "500");
  EXPECT_NE(boot.body.find("\"The VM could not boot\"," + chain), boot.body.npos) << boot.body;
  ASSERT_EQ(vmm().put("vm.boot").code, "204") << "its nets are lost by that";
  stream late{vmm().socket()};
  late.send_with_descriptors(request_text("PUT", "vm.add-net", "{\"id\":\"n\"}"), {null});
  const auto added = read_reply(late);
  EXPECT_EQ(added.code, "500");
  EXPECT_NE(added.body.find("\"The network device could not be added to the VM\"," + chain), added.body.npos)
      << added.body;
  ::close(null);
}

TEST_F(wire, one_request_at_a_time_over_all_connections) {
  vmm({"--fault", "boot_delay_ms=300"});
  ASSERT_EQ(vmm().put("vm.create", small_vm(at_)).code, "204");
  stream slow{vmm().socket()}, quick{vmm().socket()};
  slow.send(request_text("PUT", "vm.boot"));
  ASSERT_TRUE(vmm().await_event("vm/booted")); // it is at it, and holds everything up
  quick.send(ping);
  EXPECT_EQ(read_reply(quick).code, "200");
  // The other reply was there before.
  std::string text;
  EXPECT_EQ(slow.receive(text, [](const std::string& t) { return !t.empty(); }, std::chrono::milliseconds{0}), "");
  EXPECT_TRUE(text.starts_with("HTTP/1.1 204 "));
}

} // namespace
} // namespace caisson::cloud_hypervisor::tests
