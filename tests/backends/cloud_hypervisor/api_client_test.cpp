// The client against a scripted socket: each fault of the transport, and what the caller is told.

#include <sys/stat.h>

#include <array>

#include "backends/cloud-hypervisor/reply.hpp"
#include "reactor/reactor.hpp"
#include "tests/backends/cloud_hypervisor/scripted_api.hpp"

namespace caisson::cloud_hypervisor {
namespace {

using namespace testing;

class api_client_test : public ::testing::Test {
protected:
  scripted_api api;
  reactor::reactor on;
  api_client client{on, api.path()};

  // A connection over which one call has been answered.
  peer connected() {
    awaited ping{client, requests::ping()};
    auto vmm = api.accept();
    vmm.read();
    vmm.write(reply_text(200, ping_body));
    EXPECT_TRUE(ping.get().ok());
    return vmm;
  }
  // The client still works, over this connection or over a new one.
  void works_over(peer& vmm) {
    awaited ping{client, requests::ping()};
    EXPECT_TRUE(vmm.read().starts_with("GET /api/v1/vmm.ping "));
    vmm.write(reply_text(200, ping_body));
    auto out = ping.get();
    ASSERT_TRUE(out.ok()) << out.why;
    EXPECT_EQ(out.reply.body, ping_body);
  }
  void works_over_a_new_connection() {
    awaited ping{client, requests::ping()};
    auto vmm = api.accept();
    vmm.read();
    vmm.write(reply_text(200, ping_body));
    auto out = ping.get();
    ASSERT_TRUE(out.ok()) << out.why;
    EXPECT_EQ(out.reply.body, ping_body);
  }
};

TEST_F(api_client_test, writes_what_the_server_takes_and_reads_its_reply) {
  awaited ping{client, requests::ping()};
  auto vmm = api.accept();
  EXPECT_EQ(vmm.read(), "GET /api/v1/vmm.ping HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n"
                        "Content-Length: 0\r\n\r\n");
  vmm.write(reply_text(200, ping_body));
  auto out = ping.get();
  ASSERT_TRUE(out.ok()) << out.why;
  EXPECT_EQ(out.reply.body, ping_body);
  EXPECT_EQ(out.why, "");
  EXPECT_TRUE(out.sent);
  EXPECT_EQ(client.sent(), 1u);
  EXPECT_EQ(client.spent(), out.spent);

  awaited resize{client, requests::resize_ram(1073741824)};
  EXPECT_EQ(vmm.read(), "PUT /api/v1/vm.resize HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n"
                        "Content-Type: application/json\r\nContent-Length: 26\r\n\r\n{\"desired_ram\":1073741824}");
  vmm.write(no_content);
  EXPECT_TRUE(resize.get().answered(204));
}

TEST_F(api_client_test, takes_a_204_without_a_length_at_once_and_keeps_the_connection) {
  auto vmm = connected();
  awaited boot{client, requests::boot()};
  vmm.read();
  vmm.write(no_content);
  EXPECT_TRUE(boot.get().answered(204));
  works_over(vmm);
  EXPECT_FALSE(api.somebody_waits());
}

TEST_F(api_client_test, sends_one_request_at_a_time_in_order) {
  auto vmm = connected();
  awaited boot{client, requests::boot()};
  awaited ping{client, requests::ping()};
  EXPECT_TRUE(vmm.read().starts_with("PUT /api/v1/vm.boot "));
  EXPECT_FALSE(vmm.has_something());
  EXPECT_TRUE(ping.pending());
  vmm.write(no_content);
  EXPECT_TRUE(boot.get().ok());
  EXPECT_TRUE(vmm.read().starts_with("GET /api/v1/vmm.ping "));
  vmm.write(reply_text(200, ping_body));
  EXPECT_TRUE(ping.get().ok());
}

TEST_F(api_client_test, gives_the_chain_of_an_error) {
  auto vmm = connected();
  awaited resize{client, requests::resize_ram(1)};
  vmm.read();
  vmm.write(reply_text(500, R"(["Error from API","The VM could not be resized","Memory manager error","No ACPI slot available"])"));
  auto out = resize.get();
  EXPECT_TRUE(out.answered(500));
  EXPECT_FALSE(out.ok());
  EXPECT_TRUE(out.says("No ACPI slot"));
  EXPECT_EQ(out.reply.chain.size(), 4u);
  EXPECT_EQ(out.why, "Cloud Hypervisor's API at " + api.path() +
                         ": PUT vm.resize: HTTP 500: Error from API: The VM could not be resized: "
                         "Memory manager error: No ACPI slot available");
  works_over(vmm);
}

TEST_F(api_client_test, reads_the_http_librarys_own_errors_and_goes_on) {
  auto vmm = connected();
  awaited boot{client, requests::boot()};
  vmm.read();
  vmm.write(reply_text(400, "{ \"error\": \"Invalid HTTP Method: Unsupported HTTP method.\n"
                            "All previous unanswered requests will be dropped.\" }"));
  auto out = boot.get();
  EXPECT_TRUE(out.answered(400));
  EXPECT_TRUE(out.says("Unsupported HTTP method"));
  works_over(vmm);
}

TEST_F(api_client_test, calls_a_lost_reply_lost_and_never_repeats_a_put) {
  auto vmm = connected();
  awaited resize{client, requests::resize_ram(1 << 30)};
  vmm.read();
  vmm.close();
  auto out = resize.get();
  EXPECT_EQ(out.kind, outcome_kind::lost) << out.why;
  EXPECT_TRUE(out.sent);
  EXPECT_FALSE(api.somebody_waits());
  works_over_a_new_connection();
}

TEST_F(api_client_test, repeats_a_get_once_on_a_new_connection) {
  auto vmm = connected();
  awaited info{client, requests::info()};
  vmm.read();
  vmm.write("HTTP/1.1 200 \r\nContent-Le");
  vmm.close();
  auto second = api.accept();
  EXPECT_TRUE(second.read().starts_with("GET /api/v1/vm.info "));
  second.write(reply_text(404, R"(["Error from API","The VM info is not available","VM is not created"])"));
  EXPECT_TRUE(info.get().answered(404));

  awaited again{client, requests::info()};
  second.read();
  second.close();
  auto third = api.accept();
  third.read();
  third.close();
  auto out = again.get();
  EXPECT_EQ(out.kind, outcome_kind::lost);
  EXPECT_FALSE(api.somebody_waits());
}

TEST_F(api_client_test, calls_a_partial_reply_lost) {
  for (std::string_view part : {"H", "HTTP/1.1 500 \r\nContent-Length: 10\r\n",
                                "HTTP/1.1 500 \r\nContent-Length: 10\r\n\r\n[\"Error"}) {
    awaited boot{client, requests::boot()};
    auto vmm = api.accept();
    vmm.read();
    vmm.write(part);
    vmm.close();
    auto out = boot.get();
    EXPECT_EQ(out.kind, outcome_kind::lost) << part;
    EXPECT_NE(out.why.find("the connection ended within its"), out.why.npos) << out.why;
  }
}

TEST_F(api_client_test, gives_a_connection_up_that_says_garbage) {
  const std::string_view garbage[] = {std::string_view{"\0\x01\xff\r\n\r\n", 7}, "SSH-2.0-OpenSSH_9.2\r\n\r\n",
                                      "HTTP/1.1 20x \r\n\r\n", "HTTP/1.1 200 \r\nContent-Length: -1\r\n\r\n",
                                      "HTTP/1.1 200 \r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"};
  for (auto each : garbage) {
    awaited boot{client, requests::boot()};
    auto vmm = api.accept();
    vmm.read();
    vmm.write(each);
    auto out = boot.get();
    EXPECT_EQ(out.kind, outcome_kind::lost) << out.why;
    for (unsigned char c : out.why)
      EXPECT_TRUE(c >= 0x20 && c < 0x7f) << out.why;
    EXPECT_TRUE(vmm.await_end());
  }
}

TEST_F(api_client_test, takes_a_reply_that_comes_byte_by_byte) {
  auto vmm = connected();
  awaited info{client, requests::info()};
  vmm.read();
  vmm.write_slowly(reply_text(404, R"(["Error from API","VM is not created"])"));
  auto out = info.get();
  EXPECT_TRUE(out.answered(404));
  EXPECT_TRUE(out.says("VM is not created"));
  works_over(vmm);
}

TEST_F(api_client_test, knows_the_form_in_which_the_server_says_that_it_has_no_free_connection) {
  const std::string text = "HTTP/1.1 503\r\nServer: Firecracker API\r\nConnection: close\r\nContent-Length: 40\r\n\r\n"
                           "{ \"error\": \"Too many open connections\" }";
  for (std::size_t missing : {0, 1}) { // its length has been known to say more than there is
    awaited boot{client, requests::boot()};
    auto vmm = api.accept();
    vmm.read();
    vmm.write(text.substr(0, text.size() - missing));
    vmm.close();
    auto out = boot.get();
    EXPECT_EQ(out.kind, outcome_kind::refused) << out.why;
    EXPECT_FALSE(out.sent);
    EXPECT_NE(out.why.find("Too many open connections"), out.why.npos) << out.why;
  }
  works_over_a_new_connection();
}

TEST_F(api_client_test, knows_that_a_request_was_not_taken_where_writing_fails) {
  auto vmm = connected();
  vmm.take_no_more(); // what the eleventh connection meets: EPIPE
  awaited boot{client, requests::boot()};
  auto out = boot.get();
  EXPECT_EQ(out.kind, outcome_kind::refused) << out.why;
  EXPECT_FALSE(out.sent);
  vmm.close();
  works_over_a_new_connection();
}

TEST_F(api_client_test, tells_that_a_request_with_descriptors_was_not_taken) {
  auto vmm = connected();
  vmm.take_no_more();
  std::array<int, 2> ends{};
  ASSERT_EQ(::pipe(ends.data()), 0);
  awaited add{client, requests::add_net({.id = "n0"}), 60s, {ends[0]}};
  auto out = add.get();
  EXPECT_EQ(out.kind, outcome_kind::refused) << out.why;
  ::close(ends[0]);
  ::close(ends[1]);
  works_over_a_new_connection();
}

TEST_F(api_client_test, ends_a_shutdown_whose_reply_is_cut_off_as_lost) {
  auto vmm = connected();
  awaited shutdown{client, requests::shutdown_vmm()};
  vmm.read();
  vmm.close();
  api.stop();
  auto out = shutdown.get();
  EXPECT_EQ(out.kind, outcome_kind::lost);
  EXPECT_TRUE(out.sent);
  auto after = awaited{client, requests::ping()}.get();
  EXPECT_EQ(after.kind, outcome_kind::refused);
  EXPECT_NE(after.why.find("the VMM has ended"), after.why.npos) << after.why;
}

TEST_F(api_client_test, gives_a_late_call_up_and_gets_the_next_one_right) {
  auto vmm = connected();
  awaited boot{client, requests::boot(), 50ms};
  auto out = boot.get();
  EXPECT_EQ(out.kind, outcome_kind::late) << out.why;
  EXPECT_TRUE(out.sent);
  EXPECT_NE(out.why.find("no reply within 50 ms"), out.why.npos);
  EXPECT_TRUE(vmm.await_end());
  vmm.write(reply_text(500, R"(["the late reply"])"));
  works_over_a_new_connection();
}

TEST_F(api_client_test, ends_a_call_whose_turn_does_not_come_without_sending_it) {
  auto vmm = connected();
  awaited boot{client, requests::boot()};
  vmm.read();
  awaited pause{client, requests::pause(), 50ms};
  auto out = pause.get();
  EXPECT_EQ(out.kind, outcome_kind::late);
  EXPECT_FALSE(out.sent);
  EXPECT_TRUE(boot.pending());
  vmm.write(no_content);
  EXPECT_TRUE(boot.get().ok());
  works_over(vmm);
}

TEST_F(api_client_test, bounds_what_a_reply_may_hold) {
  const std::string much(64 * 1024, 'x');
  struct {
    const char* head;
    const char* told;
  } const floods[] = {{"HTTP/1.1 200 \r\nContent-Length: 99999999\r\n\r\n", "its body is longer than"},
                      {"HTTP/1.1 200 \r\n\r\n", "its body is longer than"}, // no length: until the end
                      {"HTTP/1.1 200 \r\nX: ", "its headers are longer than"},
                      {"HTTP/1.1", "no status line"}};
  for (const auto& flood : floods) {
    awaited boot{client, requests::boot()};
    auto vmm = api.accept();
    vmm.read();
    vmm.write(flood.head);
    for (int i = 0; i < 128 && boot.pending(); ++i)
      vmm.write(much);
    auto out = boot.get();
    EXPECT_EQ(out.kind, outcome_kind::lost);
    EXPECT_NE(out.why.find(flood.told), out.why.npos) << out.why;
  }
}

TEST_F(api_client_test, passes_over_interim_replies) {
  auto vmm = connected();
  awaited boot{client, requests::boot()};
  vmm.read();
  vmm.write("HTTP/1.1 100 \r\nServer: Cloud Hypervisor API\r\n\r\n" + no_content);
  EXPECT_TRUE(boot.get().answered(204));
  works_over(vmm);
}

TEST_F(api_client_test, does_not_match_a_reply_that_nobody_asked_for_with_the_next_request) {
  auto vmm = connected();
  awaited boot{client, requests::boot()};
  vmm.read();
  vmm.write(no_content + reply_text(200, "{}"));
  EXPECT_TRUE(boot.get().answered(204));
  EXPECT_TRUE(vmm.await_end());

  auto second = [this] {
    awaited ping{client, requests::ping()};
    auto other = api.accept();
    other.read();
    other.write(reply_text(200, ping_body));
    EXPECT_TRUE(ping.get().ok());
    return other;
  }();
  second.write(reply_text(200, "{}"));
  works_over_a_new_connection();
  EXPECT_TRUE(second.await_end());
}

TEST_F(api_client_test, reconnects_after_the_server_has_closed_an_idle_connection) {
  auto vmm = connected();
  vmm.close();
  awaited boot{client, requests::boot()};
  auto next = api.accept();
  EXPECT_TRUE(next.read().starts_with("PUT /api/v1/vm.boot "));
  next.write(no_content);
  auto out = boot.get();
  EXPECT_TRUE(out.answered(204)) << out.why;
}

TEST_F(api_client_test, passes_descriptors_with_the_request) {
  std::array<int, 2> ends{};
  ASSERT_EQ(::pipe(ends.data()), 0);
  awaited add{client, requests::add_net({.id = "n0", .mac = "02:00:00:00:00:01", .queues = 4}), 60s, {ends[0], ends[1]}};
  auto vmm = api.accept();
  EXPECT_NE(vmm.read().find("\"num_queues\":4"), std::string::npos);
  ASSERT_EQ(vmm.descriptors.size(), 2u);
  for (int i = 0; i < 2; ++i) {
    struct stat ours {};
    struct stat theirs {};
    ::fstat(ends[i], &ours);
    ::fstat(vmm.descriptors[i], &theirs);
    EXPECT_EQ(ours.st_ino, theirs.st_ino);
    ::close(ends[i]);
  }
  vmm.write(reply_text(200, R"({"id":"n0","bdf":"0000:00:05.0"})"));
  auto out = add.get();
  ASSERT_TRUE(out.ok()) << out.why;
  EXPECT_EQ(parse_pci_device(out.reply.body)->bdf, "0000:00:05.0");
}

TEST_F(api_client_test, refuses_a_descriptor_that_is_none_before_sending) {
  auto out = awaited{client, requests::add_net({.id = "n0"}), 60s, {-1}}.get();
  EXPECT_EQ(out.kind, outcome_kind::refused);
  EXPECT_FALSE(api.somebody_waits());
}

TEST_F(api_client_test, says_what_is_wrong_with_the_socket) {
  api_client nowhere{on, api.path() + "-missing"};
  auto missing = awaited{nowhere, requests::ping()}.get();
  EXPECT_EQ(missing.kind, outcome_kind::refused);
  EXPECT_NE(missing.why.find("has not made its socket yet"), missing.why.npos) << missing.why;

  api.stop();
  auto stale = awaited{client, requests::ping()}.get();
  EXPECT_EQ(stale.kind, outcome_kind::refused);
  EXPECT_NE(stale.why.find("nobody listens there"), stale.why.npos) << stale.why;

  api_client too_long{on, "/tmp/" + std::string(200, 'x')};
  auto out = awaited{too_long, requests::ping()}.get();
  EXPECT_EQ(out.kind, outcome_kind::refused);
  EXPECT_NE(out.why.find("205 bytes"), out.why.npos) << out.why;
}

TEST_F(api_client_test, sends_nothing_that_its_own_schema_forbids) {
  auto what = requests::boot();
  what.body = "{}";
  auto out = awaited{client, what}.get();
  EXPECT_EQ(out.kind, outcome_kind::malformed);
  EXPECT_NE(out.why.find("it takes no body"), out.why.npos) << out.why;
  EXPECT_FALSE(api.somebody_waits());
  EXPECT_EQ(client.sent(), 0u);
}

TEST_F(api_client_test, ends_what_is_pending_when_it_is_closed) {
  auto owned = std::make_unique<api_client>(on, api.path());
  awaited boot{*owned, requests::boot()};
  awaited ping{*owned, requests::ping()};
  auto vmm = api.accept();
  vmm.read();
  owned.reset();
  EXPECT_EQ(boot.get().kind, outcome_kind::lost);
  auto out = ping.get();
  EXPECT_EQ(out.kind, outcome_kind::refused);
  EXPECT_FALSE(out.sent);
  EXPECT_TRUE(vmm.await_end());
}

} // namespace
} // namespace caisson::cloud_hypervisor
