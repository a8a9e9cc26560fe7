// Streams with credit, requests, and guests that keep to no rule.

#include "tests/guest/protocol_support.hpp"

namespace caisson::guest_protocol {
namespace {

// --- Streams

RC_GTEST_PROP(streams, bytes_arrive_in_order_and_never_beyond_credit, ()) {
  recording_host host;
  recording_guest guest;
  host.session.open(1);
  for (std::uint64_t i = 0; i < 3; ++i)
    RC_ASSERT(!host.session.send_request(exec_request(i + 1, static_cast<std::uint32_t>(3 * i + 1))));
  settle(host, guest);
  std::map<std::uint32_t, std::string> sent;
  std::map<std::uint32_t, std::size_t> consumed;
  const auto steps = *rc::gen::container<std::vector<std::pair<int, std::uint32_t>>>(
      rc::gen::pair(rc::gen::inRange(0, 6), rc::gen::inRange<std::uint32_t>(0, 3)));
  const auto chunk = *rc::gen::inRange<std::size_t>(1, 90'000);
  const auto unconsumed = [&](std::uint32_t s) {
    const auto& got = s % 3 == 1 ? guest.data[s] : host.data[s];
    return got.size() - consumed[s];
  };
  for (const auto& [what, which] : steps) {
    const std::uint32_t in = 3 * which + 1, out = in + 1;
    switch (what) {
    case 0: {
      std::string text(chunk, static_cast<char>('a' + sent[in].size() % 26));
      text.resize(host.session.write(in, to_bytes(text)));
      sent[in] += text;
      break;
    }
    case 1: {
      std::string text(chunk, static_cast<char>('a' + sent[out].size() % 26));
      text.resize(guest.session.write(out, to_bytes(text)));
      sent[out] += text;
      break;
    }
    case 2:
      guest.session.feed(host.session.take_output(chunk));
      break;
    case 3:
      host.session.feed(guest.session.take_output(chunk));
      break;
    case 4:
      guest.session.consumed(in, unconsumed(in));
      consumed[in] += unconsumed(in);
      break;
    case 5:
      host.session.consumed(out, unconsumed(out));
      consumed[out] += unconsumed(out);
      break;
    }
    for (const auto s : {in, out})
      RC_ASSERT(unconsumed(s) <= stream_window_bytes);
    RC_ASSERT(host.error.empty());
  }
  // In the end everything arrives.
  for (int round = 0; round < 20; ++round) {
    settle(host, guest);
    for (std::uint32_t which = 0; which < 3; ++which) {
      const std::uint32_t in = 3 * which + 1, out = in + 1;
      guest.session.consumed(in, unconsumed(in));
      consumed[in] += unconsumed(in);
      host.session.consumed(out, unconsumed(out));
      consumed[out] += unconsumed(out);
    }
  }
  for (std::uint32_t which = 0; which < 3; ++which) {
    const std::uint32_t in = 3 * which + 1, out = in + 1;
    RC_ASSERT(guest.data[in] == sent[in]);
    RC_ASSERT(host.data[out] == sent[out]);
  }
  RC_ASSERT(host.error.empty());
}

TEST(streams, a_flood_does_not_delay_a_reply) {
  recording_host host;
  recording_guest guest;
  host.session.open(1);
  ASSERT_FALSE(host.session.send_request(exec_request(1, 1)));
  settle(host, guest);
  guest.session.write(2, bytes(stream_buffer_bytes));
  guest.session.write(3, bytes(stream_buffer_bytes));
  (void)guest.session.take_output(1); // the flood is under way
  ASSERT_FALSE(host.session.send_request(facts_request(2)));
  guest.session.feed(host.session.take_output());
  host.log.clear();
  host.data.clear();
  host.session.feed(guest.session.take_output(1));
  EXPECT_EQ(host.log, std::vector<std::string>{"reply 2"});
  EXPECT_TRUE(host.data.empty());
}

TEST(streams, two_floods_share) {
  recording_host host;
  recording_guest guest;
  host.session.open(1);
  ASSERT_FALSE(host.session.send_request(exec_request(1, 1)));
  settle(host, guest);
  guest.session.write(2, bytes(stream_buffer_bytes));
  guest.session.write(3, bytes(stream_buffer_bytes));
  bytes half;
  while (half.size() < stream_buffer_bytes)
    half = std::move(half) + guest.session.take_output(16 * 1024);
  host.session.feed(half);
  EXPECT_EQ(host.data[2].size(), host.data[3].size());
}

TEST(streams, exit_comes_after_the_last_byte_even_when_the_host_is_slow) {
  recording_host host;
  recording_guest guest;
  host.session.open(1);
  ASSERT_FALSE(host.session.send_request(exec_request(1, 1)));
  settle(host, guest);
  std::size_t written = 0;
  for (int i = 0; i < 10; ++i) {
    written += guest.session.write(2, bytes(stream_buffer_bytes));
    settle(host, guest);
  }
  EXPECT_EQ(written, stream_window_bytes + stream_buffer_bytes) << "window and buffer are full";
  guest.session.close(2);
  guest.session.close(3);
  guest.session.send_notice_after({2, 3}, exit_notice(1));
  settle(host, guest);
  EXPECT_EQ(host.log.back(), "eof 3") << "no exit while output waits for credit";
  host.session.consumed(2, host.data[2].size());
  settle(host, guest);
  EXPECT_EQ(host.data[2].size(), written);
  ASSERT_GE(host.log.size(), 2u);
  EXPECT_EQ(host.log[host.log.size() - 2], "eof 2");
  EXPECT_TRUE(host.log.back().starts_with("notice exec_exited"));
  EXPECT_EQ(host.error, "");
  // All three numbers are free again.
  EXPECT_FALSE(host.session.send_request(exec_request(2, 1)));
}

TEST(streams, stop_ends_an_output_and_frees_its_number) {
  recording_host host;
  recording_guest guest;
  host.session.open(1);
  ASSERT_FALSE(host.session.send_request(exec_request(1, 1)));
  settle(host, guest);
  guest.session.write(2, bytes(1000));
  host.session.stop(2);
  settle(host, guest);
  EXPECT_EQ(guest.log.back(), "stopped 2");
  EXPECT_EQ(host.log.back(), "eof 2");
  EXPECT_EQ(guest.session.write(2, bytes(1'000'000)), 1'000'000u) << "nobody reads it: it is dropped";
  guest.session.stop(1);
  settle(host, guest);
  EXPECT_EQ(host.log.back(), "stopped 1");
  EXPECT_EQ(host.session.write(1, bytes(1'000'000)), 1'000'000u);
  EXPECT_EQ(host.error, "");
}

TEST(requests, are_refused_with_the_reason) {
  recording_host host;
  EXPECT_TRUE(host.session.send_request(facts_request(1))) << "not open";
  host.session.open(1);
  EXPECT_FALSE(host.session.send_request(facts_request(1)));
  EXPECT_TRUE(host.session.send_request(facts_request(1))) << "id in use";
  EXPECT_TRUE(host.session.send_request(exec_request(2, 0))) << "stream 0";
  auto large = exec_request(3, 10);
  large.mutable_exec_start()->add_argv(std::string(payload_bytes_max, 'x'));
  EXPECT_NE(host.session.send_request(large).value_or("").find(std::to_string(payload_bytes_max)), std::string::npos);
  EXPECT_FALSE(host.session.send_request(exec_request(4, 10)));
  EXPECT_TRUE(host.session.send_request(exec_request(5, 12))) << "stream 12 in use";
  std::uint64_t id = 100;
  while (id < 5000 && !host.session.send_request(facts_request(id)))
    ++id;
  EXPECT_LE(host.session.requests_waiting(), requests_max);
  EXPECT_LT(id, 5000u) << "a guest that never answers doesn't let the host's memory grow";
}

// --- Hostile guests

std::string error_after(const bytes& from_guest, bool with_exec = true) {
  recording_host host;
  host.session.open(1);
  if (with_exec) {
    EXPECT_FALSE(host.session.send_request(exec_request(1, 1)));
  }
  host.session.feed(greeting(1) + from_guest);
  EXPECT_FALSE(host.session.is_open() && !host.error.empty());
  return host.error;
}

bytes frame(frame_type type, std::uint32_t stream, const bytes& payload = {}) {
  bytes out;
  append_frame(out, 1, type, stream, payload);
  return out;
}

bytes control(const v1::GuestControl& message) {
  return frame(frame_type::control, 0, to_bytes(message.SerializeAsString()));
}

TEST(hostile_guest, more_than_its_credit) {
  bytes flood;
  for (std::uint32_t sent = 0; sent < stream_window_bytes; sent += 32 * 1024)
    flood = std::move(flood) + frame(frame_type::data, 2, bytes(32 * 1024));
  EXPECT_EQ(error_after(flood), "");
  EXPECT_NE(error_after(flood + frame(frame_type::data, 2, bytes(1))).find("stream 2"), std::string::npos);
}

TEST(hostile_guest, breaks_the_rules) {
  EXPECT_NE(error_after(to_bytes("hello, host")), "");
  EXPECT_NE(error_after(greeting(1)), "") << "twice";
  EXPECT_NE(error_after(frame(frame_type::open, 0)), "");
  EXPECT_NE(error_after(frame(frame_type::control, 0, to_bytes("\xff\xff\xff"))), "");
  EXPECT_NE(error_after(frame(frame_type::control, 0)), "");
  EXPECT_NE(error_after(frame(frame_type::data, 2)), "") << "empty data";
  EXPECT_NE(error_after(frame(frame_type::credit, 1, to_bytes("\x01"))), "");
  EXPECT_NE(error_after(frame(frame_type::credit, 1, to_bytes("\xff\xff\xff\xff"))), "");
  EXPECT_NE(error_after(frame(static_cast<frame_type>(99), 1)), "");
  v1::GuestControl message;
  message.mutable_reply()->set_id(77);
  message.mutable_reply()->mutable_done();
  EXPECT_NE(error_after(control(message)).find("77"), std::string::npos);
  message.mutable_reply()->set_id(1);
  EXPECT_NE(error_after(control(message)), "") << "done is no answer to ExecStart";
  message.Clear();
  *message.mutable_notice() = exit_notice(5);
  EXPECT_NE(error_after(control(message)), "") << "nothing runs";
  bytes strays;
  for (int i = 0; i < 64; ++i)
    strays = std::move(strays) + frame(frame_type::data, 50, bytes(1));
  EXPECT_EQ(error_after(strays), "") << "a few may cross with an end";
  EXPECT_NE(error_after(strays + frame(frame_type::data, 50, bytes(1))), "");
}

TEST(hostile_guest, announces_a_huge_frame) {
  auto header = frame(frame_type::data, 2, bytes(1));
  header.resize(frame_header_bytes);
  recording_host host;
  host.session.open(1);
  host.session.feed(greeting(1));
  // A wrong length is noticed by the header's checksum.
  header[22] = std::byte{0xff};
  host.session.feed(header);
  EXPECT_NE(host.error, "");
}

TEST(hostile_guest, other_protocol_version) {
  v1::GuestControl message;
  message.mutable_hello()->set_protocol_version(protocol_version + 1);
  recording_host host;
  host.session.open(1);
  host.session.feed(control(message));
  EXPECT_NE(host.error.find("protocol " + std::to_string(protocol_version + 1)), std::string::npos);
}

TEST(hostile_guest, says_an_exit_before_the_output_has_ended) {
  v1::GuestControl started, exited;
  started.mutable_reply()->set_id(1);
  started.mutable_reply()->mutable_exec_started()->set_exec_id(1);
  *exited.mutable_notice() = exit_notice(1);
  EXPECT_EQ(error_after(control(started)), "");
  EXPECT_NE(error_after(control(started) + control(exited)), "");
  EXPECT_EQ(error_after(control(started) + frame(frame_type::end, 2) + frame(frame_type::end, 3) + control(exited)),
            "");
}

RC_GTEST_PROP(hostile_guest, damage_is_never_taken_for_truth, ()) {
  recording_host host;
  host.session.open(1);
  RC_ASSERT(!host.session.send_request(exec_request(1, 1)));
  auto whole = greeting(1) + frame(frame_type::data, 2, to_bytes("abcdef")) + frame(frame_type::end, 2);
  const auto at = *rc::gen::inRange<std::size_t>(0, whole.size());
  whole[at] ^= static_cast<std::byte>(*rc::gen::inRange(1, 256));
  in_pieces(whole, *piece_sizes(), [&](auto piece) { host.session.feed(piece); });
  RC_ASSERT(host.data[2].empty() || host.data[2] == "abcdef");
  RC_ASSERT(!host.error.empty() || host.log.empty() || host.ended.empty());
}

RC_GTEST_PROP(hostile_guest, any_bytes_are_survived, ()) {
  recording_host host;
  recording_guest guest;
  host.session.open(1);
  const auto noise = *rc::gen::container<std::vector<bytes>>(rc::gen::oneOf(
      some_bytes(200),
      rc::gen::map(rc::gen::pair(rc::gen::inRange(0, 9), some_bytes(100)), [](const std::pair<int, bytes>& p) {
        return frame(static_cast<frame_type>(p.first), static_cast<std::uint32_t>(p.first) % 4, p.second);
      })));
  for (const auto& piece : noise) {
    host.session.feed(piece);
    guest.session.feed(piece);
  }
  (void)all_output(host.session);
  (void)all_output(guest.session);
  SUCCEED();
}

} // namespace
} // namespace caisson::guest_protocol
