#include <gtest/gtest.h>

#include <random>

#include "backends/host/line_reader.hpp"
#include "backends/host/server.hpp"

namespace caisson::host {
namespace {

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span{text.data(), text.size()});
}

TEST(wire, messages_arrive_whole_however_the_stream_is_cut) {
  std::mt19937 random{7};
  for (int round = 0; round < 200; ++round) {
    std::string stream;
    std::vector<std::string> sent;
    for (int i = 0; i < 20; ++i) {
      v1::BackendSays says;
      if (random() % 5 != 0)
        says.set_log_line(std::string(random() % 300, static_cast<char>('a' + i)));
      sent.push_back(says.SerializeAsString());
      stream += *to_frame(says);
    }
    std::vector<std::string> got;
    frame_reader reader;
    for (std::string_view rest{stream}; !rest.empty();) {
      auto piece = rest.substr(0, 1 + random() % 700);
      ASSERT_TRUE(reader.feed(bytes_of(piece)));
      while (auto message = reader.next())
        got.emplace_back(*message);
      rest.remove_prefix(piece.size());
    }
    ASSERT_EQ(got, sent) << "round " << round;
  }
}

TEST(wire, an_announced_length_over_one_mebibyte_breaks_the_stream_and_keeps_nothing) {
  frame_reader reader;
  EXPECT_TRUE(reader.feed(bytes_of(std::string_view{"\0\x10\0\0", 4}))); // exactly 1 MiB may come
  frame_reader broken;
  EXPECT_FALSE(broken.feed(bytes_of(std::string_view{"\0\x10\0\1", 4})));
  EXPECT_FALSE(broken.feed(bytes_of("more")));
  EXPECT_FALSE(broken.next());

  v1::BackendSays large;
  large.set_log_line(std::string(max_message_bytes, 'x'));
  EXPECT_FALSE(to_frame(large));
}

TEST(wire, what_was_whole_before_the_break_is_still_read) {
  v1::BackendSays says;
  says.set_log_line("last words");
  frame_reader reader;
  EXPECT_FALSE(reader.feed(bytes_of(*to_frame(says) + "\xff\xff\xff\xff")));
  auto message = reader.next();
  ASSERT_TRUE(message);
  EXPECT_EQ(*message, says.SerializeAsString());
  EXPECT_FALSE(reader.next());
}

TEST(wire, a_call_without_a_deadline_gets_the_contracts) {
  v1::BackendCall call;
  call.mutable_create()->mutable_spec()->set_sandbox_id("a");
  EXPECT_EQ(deadline_ms_of(call), 30'000u);
  EXPECT_EQ(sandbox_of(call), "a");
  EXPECT_EQ(verb_name(call), "create");
  set_deadline_ms(call, 4'000'000'000u);
  EXPECT_EQ(deadline_ms_of(call), 600'000u);
}

TEST(output_lines, are_cut_cleaned_and_bounded) {
  std::vector<std::string> out;
  line_reader lines{[&](std::string_view line) { out.emplace_back(line); }};
  auto now = line_reader::clock::now();
  lines.feed(bytes_of("one\nt\x1b[2Jwo"), now);
  EXPECT_EQ(out, std::vector<std::string>{"one"});
  lines.feed(bytes_of("\n\n" + std::string(5000, 'x') + "\n"), now);
  ASSERT_EQ(out.size(), 3u);
  EXPECT_EQ(out[1], "t?[2Jwo");
  EXPECT_EQ(out[2].size(), max_log_line_bytes);
  for (int i = 0; i < 1000; ++i)
    lines.feed(bytes_of("flood\n"), now);
  EXPECT_EQ(out.size(), 200u);
  EXPECT_EQ(lines.last_lines(), "flood / flood / flood");
  lines.feed(bytes_of("calm\n"), now + std::chrono::seconds{6});
  ASSERT_EQ(out.size(), 202u);
  EXPECT_EQ(out[200], "803 lines were left out: more than 200 in 5 s");
  EXPECT_EQ(out[201], "calm");
}

TEST(backend_arguments, are_the_four_directories) {
  std::string error;
  const char* good[] = {"p", "--state", "/s", "--run", "/r", "--cache", "/c", "--log", "/l"};
  auto where = parse_arguments(9, good, error);
  ASSERT_TRUE(where) << error;
  EXPECT_EQ(where->cache_directory, "/c");
  EXPECT_FALSE(parse_arguments(7, good, error));
  EXPECT_NE(error.find("--log DIR"), std::string::npos) << error;
  const char* other[] = {"p", "--help"};
  EXPECT_FALSE(parse_arguments(2, other, error));
  EXPECT_NE(error.find("--help"), std::string::npos) << error;
}

} // namespace
} // namespace caisson::host
