#include "guest/protocol/guest_session.hpp"
#include "guest/protocol/host_session.hpp"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <string>
#include <vector>

namespace caisson::guest_protocol {
namespace {

using bytes = std::vector<std::byte>;

bytes to_bytes(const std::string& text) {
  const auto view = std::as_bytes(std::span{text});
  return {view.begin(), view.end()};
}

std::string to_text(std::span<const std::byte> b) {
  return {reinterpret_cast<const char*>(b.data()), b.size()};
}

bytes operator+(bytes a, const bytes& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// Feeds `whole` in pieces whose sizes come from `sizes`, again and again.
template <class Feed> void in_pieces(const bytes& whole, const std::vector<std::size_t>& sizes, Feed feed) {
  std::size_t at = 0, turn = 0;
  while (at < whole.size()) {
    const auto size = sizes.empty() ? whole.size() : std::min(sizes[turn++ % sizes.size()] + 1, whole.size() - at);
    feed(std::span{whole}.subspan(at, size));
    at += size;
  }
}

rc::Gen<std::vector<std::size_t>> piece_sizes() {
  return rc::gen::container<std::vector<std::size_t>>(rc::gen::weightedOneOf<std::size_t>(
      {{3, rc::gen::inRange<std::size_t>(0, 40)}, {1, rc::gen::inRange<std::size_t>(0, 100'000)}}));
}

rc::Gen<bytes> some_bytes(std::size_t most) {
  return rc::gen::map(rc::gen::pair(rc::gen::arbitrary<std::string>(), rc::gen::inRange<std::size_t>(0, most)),
                      [](const std::pair<std::string, std::size_t>& p) {
                        auto b = to_bytes(p.first);
                        for (std::size_t n = b.size(); n < p.second; ++n)
                          b.push_back(static_cast<std::byte>(n * 31 + p.second));
                        return b;
                      });
}

/// A host that writes down what it is told.
struct recording_host {
  std::vector<std::string> log;
  std::map<std::uint32_t, std::string> data;
  std::vector<std::uint32_t> ended;
  std::string error;
  host_session session{{
      .on_hello = [this](const v1::AgentHello& h) { log.push_back("hello " + h.kernel_release()); },
      .on_reply = [this](const v1::AgentReply& r) { log.push_back("reply " + std::to_string(r.id())); },
      .on_notice = [this](const v1::AgentNotice& n) { log.push_back("notice " + n.ShortDebugString()); },
      .on_data = [this](std::uint32_t s, std::span<const std::byte> b) { data[s] += to_text(b); },
      .on_eof = [this](std::uint32_t s) { ended.push_back(s), log.push_back("eof " + std::to_string(s)); },
      .on_writable = nullptr,
      .on_stopped = [this](std::uint32_t s) { log.push_back("stopped " + std::to_string(s)); },
      .on_protocol_error = [this](const std::string& text) { error = text; },
  }};
};

struct recording_guest {
  std::vector<std::string> log;
  std::map<std::uint32_t, std::string> data;
  guest_session session{{
      .on_open =
          [this] {
            log.push_back("open");
            v1::AgentHello hello;
            hello.set_protocol_version(protocol_version);
            hello.set_kernel_release("6.1");
            session.send_hello(hello);
          },
      .on_request =
          [this](const v1::AgentRequest& r) {
            log.push_back("request " + std::to_string(r.id()));
            if (r.has_exec_start()) {
              session.add_input(r.exec_start().stdin_stream());
              session.add_output(r.exec_start().stdout_stream());
              session.add_output(r.exec_start().stderr_stream());
            }
            v1::AgentReply reply;
            reply.set_id(r.id());
            if (r.has_exec_start())
              reply.mutable_exec_started()->set_exec_id(r.id());
            else
              reply.mutable_done();
            session.send_reply(reply);
          },
      .on_data = [this](std::uint32_t s, std::span<const std::byte> b) { data[s] += to_text(b); },
      .on_eof = [this](std::uint32_t s) { log.push_back("eof " + std::to_string(s)); },
      .on_writable = nullptr,
      .on_stopped = [this](std::uint32_t s) { log.push_back("stopped " + std::to_string(s)); },
  }};
};

template <class Session> bytes all_output(Session& session) {
  bytes out;
  while (session.has_output())
    out = std::move(out) + session.take_output();
  return out;
}

/// Carries bytes both ways until neither has more to say.
void settle(recording_host& host, recording_guest& guest) {
  while (host.session.has_output() || guest.session.has_output()) {
    guest.session.feed(host.session.take_output());
    host.session.feed(guest.session.take_output());
  }
}

v1::AgentRequest facts_request(std::uint64_t id) {
  v1::AgentRequest request;
  request.set_id(id);
  request.mutable_read_facts();
  return request;
}

v1::AgentRequest exec_request(std::uint64_t id, std::uint32_t first_stream) {
  v1::AgentRequest request;
  request.set_id(id);
  auto& exec = *request.mutable_exec_start();
  exec.add_argv("cat");
  exec.set_stdin_stream(first_stream);
  exec.set_stdout_stream(first_stream + 1);
  exec.set_stderr_stream(first_stream + 2);
  return request;
}

v1::AgentNotice exit_notice(std::uint64_t exec_id) {
  v1::AgentNotice notice;
  notice.mutable_exec_exited()->set_exec_id(exec_id);
  return notice;
}

/// Bytes of a guest that has greeted in this epoch.
bytes greeting(std::uint64_t epoch) {
  v1::GuestControl control;
  control.mutable_hello()->set_protocol_version(protocol_version);
  bytes out;
  append_frame(out, epoch, frame_type::control, 0, to_bytes(control.SerializeAsString()));
  return out;
}

// --- Frames

RC_GTEST_PROP(frames, any_split_gives_the_same_frames, ()) {
  const auto payloads = *rc::gen::container<std::vector<bytes>>(some_bytes(payload_bytes_max));
  const auto sizes = *piece_sizes();
  bytes whole;
  for (std::size_t i = 0; i < payloads.size(); ++i)
    append_frame(whole, 7, frame_type::data, static_cast<std::uint32_t>(i), payloads[i]);
  for (const bool host : {true, false}) {
    auto decoder = host ? frame_decoder{7} : frame_decoder{};
    std::vector<bytes> seen;
    in_pieces(whole, sizes, [&](std::span<const std::byte> piece) {
      RC_ASSERT(!decoder.feed(piece, [&](const frame_view& f) {
        seen.emplace_back(f.payload.begin(), f.payload.end());
        return true;
      }));
    });
    RC_ASSERT(seen == payloads);
    RC_ASSERT(decoder.skipped_bytes() == 0u);
  }
}

TEST(frames, a_header_is_32_bytes_and_documented) {
  bytes whole;
  append_frame(whole, 0x0102030405060708, frame_type::data, 9, to_bytes("ab"));
  ASSERT_EQ(whole.size(), frame_header_bytes + 2);
  EXPECT_EQ(to_text(std::span{whole}.first(4)), "\xC5"
                                                "CSN");
  EXPECT_EQ(whole[4], std::byte{8});
  EXPECT_EQ(whole[11], std::byte{1});
  EXPECT_EQ(whole[12], std::byte{3});
  EXPECT_EQ(whole[16], std::byte{9});
  EXPECT_EQ(whole[20], std::byte{2});
}

// --- Finding the place

RC_GTEST_PROP(resynchronisation, host_drops_whatever_comes_before_its_epoch, ()) {
  const auto garbage = *some_bytes(3000);
  const auto sizes = *piece_sizes();
  // The tail of what the guest said to a dead engine, cut anywhere.
  bytes old;
  append_frame(old, 5, frame_type::data, 3, *some_bytes(2000));
  const auto cut = *rc::gen::inRange<std::size_t>(0, old.size());
  const bytes tail(old.begin() + static_cast<std::ptrdiff_t>(cut), old.end());
  recording_host host;
  host.session.open(99);
  in_pieces(garbage + tail + greeting(99), sizes, [&](auto piece) { host.session.feed(piece); });
  RC_ASSERT(host.error.empty());
  RC_ASSERT(host.log == std::vector<std::string>{"hello "});
}

RC_GTEST_PROP(resynchronisation, guest_finds_the_new_host_behind_half_a_frame, ()) {
  recording_host dead, next;
  recording_guest guest;
  dead.session.open(5);
  guest.session.feed(all_output(dead.session));
  (void)all_output(guest.session);
  // A standard input that looks like the protocol itself.
  bytes trap;
  append_frame(trap, 666, frame_type::open, 0, {});
  RC_ASSERT(!dead.session.send_request(exec_request(1, 1)));
  dead.session.feed(greeting(5));
  guest.session.feed(all_output(dead.session));
  (void)all_output(guest.session);
  const auto input = *some_bytes(5000) + trap + *some_bytes(20'000);
  dead.session.write(1, input);
  RC_ASSERT(!dead.session.send_request(facts_request(2)));
  const auto last_words = all_output(dead.session);
  const auto cut = *rc::gen::inRange<std::size_t>(0, last_words.size() + 1);
  guest.data.clear();
  guest.log.clear();
  guest.session.feed(std::span{last_words}.first(cut));
  guest.log.clear();

  next.session.open(6);
  RC_ASSERT(!next.session.send_request(facts_request(1)));
  in_pieces(all_output(next.session), *piece_sizes(), [&](auto piece) { guest.session.feed(piece); });
  // A frame that lacked nothing but zeros is whole now, and true. Nothing is ever made up from half a one.
  if (!guest.log.empty() && guest.log.front() == "request 2")
    guest.log.erase(guest.log.begin());
  RC_ASSERT(guest.log == (std::vector<std::string>{"open", "request 1"}));
  RC_ASSERT(to_text(input).starts_with(guest.data[1]));
  RC_ASSERT(guest.session.epoch() == 6u);
  next.session.feed(all_output(guest.session));
  RC_ASSERT(next.log == (std::vector<std::string>{"hello 6.1", "reply 1"}));
}

TEST(resynchronisation, guest_is_silent_before_open) {
  recording_guest guest;
  bytes data;
  append_frame(data, 4, frame_type::control, 0, to_bytes("x"));
  guest.session.feed(data);
  v1::AgentNotice notice;
  notice.mutable_facts_changed();
  EXPECT_FALSE(guest.session.send_notice(notice));
  EXPECT_FALSE(guest.session.has_output());
  EXPECT_TRUE(guest.log.empty());
}

TEST(resynchronisation, a_handler_may_open_the_next_connection) {
  int hellos = 0;
  host_session* session = nullptr;
  host_session host{{.on_hello =
                         [&](const v1::AgentHello&) {
                           if (++hellos == 1)
                             session->open(2);
                         },
                     .on_reply = nullptr,
                     .on_notice = nullptr,
                     .on_data = nullptr,
                     .on_eof = nullptr,
                     .on_writable = nullptr,
                     .on_stopped = nullptr,
                     .on_protocol_error = [](const std::string& text) { FAIL() << text; }}};
  session = &host;
  host.open(1);
  host.feed(greeting(1) + to_bytes("and more of the first connection"));
  EXPECT_EQ(hellos, 1);
  EXPECT_FALSE(host.greeted());
  host.feed(greeting(2));
  EXPECT_EQ(hellos, 2);
  EXPECT_TRUE(host.greeted());
}

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
