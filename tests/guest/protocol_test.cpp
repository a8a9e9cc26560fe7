// Frames, and how both sides find their place in bytes that begin anywhere.

#include "tests/guest/protocol_support.hpp"

namespace caisson::guest_protocol {
namespace {

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

} // namespace
} // namespace caisson::guest_protocol
