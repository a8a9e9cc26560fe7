#include "messages/validate.hpp"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <fstream>
#include <iterator>

#include "messages/error.hpp"
#include "messages/inspect.hpp"

namespace caisson {
namespace {

TEST(size, is_read_as_people_write_it) {
  struct row {
    const char* text;
    std::uint64_t bytes;
  };
  constexpr std::uint64_t mib = 1024 * 1024;
  for (const auto& [text, bytes] : {row{"1536M", 1536 * mib}, {"2GiB", 2048 * mib}, {"2G", 2048 * mib}, {"2gb", 2048 * mib},
                                    {"1.5G", 1536 * mib}, {"512Mi", 512 * mib}, {"4096", 4096}, {"0", 0}, {"3K", 3072},
                                    {"1T", 1024 * 1024 * mib}, {"7B", 7}}) {
    std::string why;
    auto got = parse_size_bytes(text, why);
    ASSERT_TRUE(got) << text << ": " << why;
    EXPECT_EQ(*got, bytes) << text;
  }
}

TEST(size, says_what_is_wrong_with_it) {
  struct row {
    const char* text;
    const char* reason;
  };
  for (const auto& [text, reason] :
       {row{"-1G", "negative"}, {"", "digit"}, {"G", "digit"}, {"12X", "unit"}, {"12MM", "unit"}, {"1.G", "digits are missing"},
        {"99999999999999999999", "16 EiB"}, {"17E", "16 EiB"}, {"1.5", "whole number"}, {"1 G", "unit"}, {"1G\n", "unit"}}) {
    std::string why;
    EXPECT_FALSE(parse_size_bytes(text, why)) << text;
    EXPECT_NE(why.find(reason), std::string::npos) << text << " gave: " << why;
    EXPECT_NE(why.find("1536M"), std::string::npos) << "the mend is missing in: " << why;
  }
}

TEST(size, what_is_shown_exactly_reads_back_as_the_same) {
  EXPECT_TRUE(rc::check("show and parse", [](std::uint32_t mib) {
    auto bytes = std::uint64_t{mib} * 1024 * 1024;
    auto shown = show_bytes(bytes);
    shown.erase(std::remove(shown.begin(), shown.end(), ' '), shown.end());
    std::string why;
    auto again = parse_size_bytes(shown == "0bytes" ? "0" : shown, why);
    RC_ASSERT(again.has_value());
    RC_ASSERT(*again == bytes);
  }));
}

TEST(guest_text, has_no_control_characters_left) {
  EXPECT_TRUE(rc::check("escape", [](const std::string& text) {
    auto out = escape_guest_text(text, 10'000);
    for (unsigned char c : out)
      RC_ASSERT(c >= 0x20 && c != 0x7f);
  }));
  EXPECT_EQ(escape_guest_text("\x1b[2Jhi\r\n"), "\\x1b[2Jhi\\x0d\\x0a");
  EXPECT_EQ(escape_guest_text("größe"), "größe");
  EXPECT_EQ(escape_guest_text("\xe2\x80\xae""evil"), "\\xe2\\x80\\xae""evil") << "a bidirectional override reorders a terminal's line";
  EXPECT_EQ(escape_guest_text("\xc0\xaf"), "\\xc0\\xaf") << "overlong forms are no text";
  EXPECT_EQ(escape_guest_text(std::string(100, 'x'), 10).size(), 10u);
}

TEST(border, refuses_names_that_could_hurt_a_path_or_a_terminal) {
  for (const auto* bad : {"", "../x", "-rf", ".hidden", "a b", "a,b", "a\"b", "a\nb", "a/b", "\x1b[m"})
    EXPECT_TRUE(validate_name(bad)) << bad;
  EXPECT_TRUE(validate_name(std::string(65, 'a')));
  for (const auto* good : {"a", "web-1", "A.b_c", "0"})
    EXPECT_FALSE(validate_name(good)) << good;
  EXPECT_NE(text_of(validate_name("a\nb")).find("\\x0a"), std::string::npos);
}

TEST(border, refuses_a_resize_without_or_with_an_absurd_target) {
  v1::ResizeSandbox m;
  m.set_sandbox("a");
  EXPECT_EQ(code_of(validate(m)), ec::invalid_argument);
  m.set_memory_bytes(std::uint64_t{1} << 60);
  EXPECT_EQ(code_of(validate(m)), ec::out_of_range);
  m.set_memory_bytes(1 << 30);
  EXPECT_FALSE(validate(m));
  m.set_vcpus(5000);
  EXPECT_EQ(code_of(validate(m)), ec::out_of_range);
  m.set_vcpus(1);
  m.set_cause("nobody's");
  EXPECT_EQ(code_of(validate(m)), ec::invalid_argument) << "a cause is the engine's own";
  v1::ResizeSandbox automatic;
  automatic.set_sandbox("a");
  automatic.set_autosize(true);
  EXPECT_FALSE(validate(automatic));
}

TEST(error, keeps_its_code_text_and_console_on_its_way_through_actors) {
  auto e = make_error(ec::boot_failed, "it did not boot", {"line 1", "line 2"});
  auto shown = to_proto(e);
  EXPECT_EQ(shown.code(), "boot_failed");
  EXPECT_EQ(shown.text(), "it did not boot");
  EXPECT_EQ(shown.console_tail_size(), 2);
  EXPECT_EQ(code_of(make_error(shown)), ec::boot_failed);
}

TEST(error, has_a_row_with_a_usable_exit_code_for_every_code) {
  for (int i = 1; i < static_cast<int>(ec::count_); ++i) {
    const auto& r = row(static_cast<ec>(i));
    EXPECT_EQ(row_by_name(r.name), &r);
    EXPECT_TRUE(r.exit_code == 2 || r.exit_code == 125) << r.name;
    EXPECT_GT(r.grpc_code, 0) << r.name;
  }
  EXPECT_EQ(row_by_name("no such row"), nullptr);
}

TEST(error, every_code_is_explained_in_the_documentation) {
  std::ifstream in{CAISSON_SOURCE_DIR "/docs/errors.md"};
  std::string page{std::istreambuf_iterator<char>{in}, {}};
  for (int i = 1; i < static_cast<int>(ec::count_); ++i) {
    const auto& r = row(static_cast<ec>(i));
    auto line = "| `" + std::string{r.name} + "` |";
    auto at = page.find(line);
    ASSERT_NE(at, std::string::npos) << r.name;
    auto shown = page.substr(at, page.find('\n', at) - at);
    EXPECT_NE(shown.find("| " + std::to_string(r.exit_code) + " |"), std::string::npos) << shown;
    EXPECT_NE(shown.find(r.retryable ? "| yes |" : "| no |"), std::string::npos) << shown;
  }
}

TEST(error, translates_what_caf_says_by_itself) {
  EXPECT_EQ(to_proto(caf::make_error(caf::sec::request_timeout), "resize").code(), "deadline_exceeded");
  EXPECT_EQ(to_proto(caf::make_error(caf::sec::request_receiver_down), "resize").code(), "backend_lost");
}

} // namespace
} // namespace caisson
