#include "backends/cloud-hypervisor/double/json_reader.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>

namespace caisson::cloud_hypervisor::api_double {

int json_reader::peek() {
  while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r'))
    ++at_;
  return at_ < text_.size() ? static_cast<unsigned char>(text_[at_]) : -1;
}

std::string json_reader::placed(std::string text, std::size_t at) const {
  std::size_t line = 1, start = 0;
  for (std::size_t i = 0; i < at && i < text_.size(); ++i)
    if (text_[i] == '\n') {
      ++line;
      start = i + 1;
    }
  return text + " at line " + std::to_string(line) + " column " + std::to_string(at - start);
}

void json_reader::fail(std::string text) const {
  throw json_problem{placed(std::move(text), at_), true};
}

void json_reader::fail_peek(std::string text) const {
  throw json_problem{placed(std::move(text), std::min(at_ + 1, text_.size())), true};
}

bool json_reader::next_key(bool first, std::string& key) {
  auto c = peek();
  if (c == '}')
    return false;
  if (!first) {
    if (c == -1)
      fail_peek("EOF while parsing an object");
    if (c != ',')
      fail_peek("expected `,` or `}`");
    advance();
    c = peek();
    if (c == '}')
      fail_peek("trailing comma");
    if (c == -1)
      fail_peek("EOF while parsing a value");
  } else if (c == -1) {
    fail_peek("EOF while parsing an object");
  }
  if (c != '"')
    fail_peek("key must be a string");
  key = read_string();
  return true;
}

void json_reader::read_colon() {
  const auto c = peek();
  if (c == -1)
    fail_peek("EOF while parsing an object");
  if (c != ':')
    fail_peek("expected `:`");
  advance();
}

bool json_reader::next_element(bool first) {
  auto c = peek();
  if (c == ']')
    return false;
  if (first) {
    if (c == -1)
      fail_peek("EOF while parsing a list");
    return true;
  }
  if (c == -1)
    fail_peek("EOF while parsing a list");
  if (c != ',')
    fail_peek("expected `,` or `]`");
  advance();
  c = peek();
  if (c == ']')
    fail_peek("trailing comma");
  if (c == -1)
    fail_peek("EOF while parsing a value");
  return true;
}

unsigned json_reader::hex4() {
  unsigned value = 0;
  for (int i = 0; i < 4; ++i) {
    if (at_ >= text_.size())
      fail("EOF while parsing a string");
    const auto c = text_[at_++];
    unsigned digit = 0;
    if (c >= '0' && c <= '9')
      digit = static_cast<unsigned>(c - '0');
    else if ((c | 32) >= 'a' && (c | 32) <= 'f')
      digit = static_cast<unsigned>((c | 32) - 'a' + 10);
    else
      fail("invalid escape");
    value = value * 16 + digit;
  }
  return value;
}

std::string json_reader::read_string() {
  advance(); // the opening quote
  std::string out;
  const auto put = [&out](unsigned code) {
    if (code < 0x80) {
      out += static_cast<char>(code);
    } else if (code < 0x800) {
      out += static_cast<char>(0xC0 | code >> 6);
      out += static_cast<char>(0x80 | (code & 63));
    } else if (code < 0x10000) {
      out += static_cast<char>(0xE0 | code >> 12);
      out += static_cast<char>(0x80 | (code >> 6 & 63));
      out += static_cast<char>(0x80 | (code & 63));
    } else {
      out += static_cast<char>(0xF0 | code >> 18);
      out += static_cast<char>(0x80 | (code >> 12 & 63));
      out += static_cast<char>(0x80 | (code >> 6 & 63));
      out += static_cast<char>(0x80 | (code & 63));
    }
  };
  for (;;) {
    if (at_ >= text_.size())
      fail("EOF while parsing a string");
    const auto c = text_[at_++];
    if (c == '"')
      return out;
    if (static_cast<unsigned char>(c) < 0x20)
      fail("control character (\\u0000-\\u001F) found while parsing a string");
    if (c != '\\') {
      out += c;
      continue;
    }
    if (at_ >= text_.size())
      fail("EOF while parsing a string");
    switch (const auto e = text_[at_++]) {
    case '"':
    case '\\':
    case '/':
      out += e;
      break;
    case 'b':
      out += '\b';
      break;
    case 'f':
      out += '\f';
      break;
    case 'n':
      out += '\n';
      break;
    case 'r':
      out += '\r';
      break;
    case 't':
      out += '\t';
      break;
    case 'u': {
      auto code = hex4();
      if (code >= 0xDC00 && code < 0xE000)
        fail("lone leading surrogate in hex escape");
      if (code >= 0xD800 && code < 0xDC00) {
        if (text_.substr(at_, 2) != "\\u")
          fail("unexpected end of hex escape");
        at_ += 2;
        const auto low = hex4();
        if (low < 0xDC00 || low >= 0xE000)
          fail("lone leading surrogate in hex escape");
        code = 0x10000 + ((code - 0xD800) << 10 | (low - 0xDC00));
      }
      put(code);
      break;
    }
    default:
      fail("invalid escape");
    }
  }
}

json json_reader::read_number() {
  const auto start = at_;
  const auto digit = [this] { return at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; };
  const auto digits = [&] {
    if (!digit())
      fail_peek(at_ >= text_.size() ? "EOF while parsing a value" : "invalid number");
    while (digit())
      ++at_;
  };
  const bool negative = text_[at_] == '-';
  if (negative)
    ++at_;
  if (digit() && text_[at_] == '0') {
    ++at_;
    if (digit())
      fail_peek("invalid number");
  } else {
    digits();
  }
  bool whole = true;
  if (at_ < text_.size() && text_[at_] == '.') {
    whole = false;
    ++at_;
    digits();
  }
  if (at_ < text_.size() && (text_[at_] | 32) == 'e') {
    whole = false;
    ++at_;
    if (at_ < text_.size() && (text_[at_] == '+' || text_[at_] == '-'))
      ++at_;
    digits();
  }
  const auto* from = text_.data() + start;
  const auto* to = text_.data() + at_;
  if (whole && !negative) {
    std::uint64_t value = 0;
    if (std::from_chars(from, to, value).ec == std::errc{})
      return value;
  } else if (whole) {
    std::int64_t value = 0;
    if (std::from_chars(from, to, value).ec == std::errc{} && value != 0)
      return value;
  }
  double value = 0;
  if (std::from_chars(from, to, value).ec != std::errc{} || !std::isfinite(value))
    fail("number out of range");
  return value;
}

void json_reader::literal(std::string_view word) {
  for (const auto c : word) {
    if (at_ >= text_.size())
      fail("EOF while parsing a value");
    if (text_[at_++] != c)
      fail("expected ident");
  }
}

json json_reader::read_any() {
  const auto c = peek();
  switch (c) {
  case -1:
    fail_peek("EOF while parsing a value");
  case 'n':
    literal("null");
    return nullptr;
  case 't':
    literal("true");
    return true;
  case 'f':
    literal("false");
    return false;
  case '"':
    return read_string();
  case '[':
  case '{':
    break;
  default:
    if (c == '-' || (c >= '0' && c <= '9'))
      return read_number();
    fail_peek("expected value");
  }
  if (--depth_ == 0)
    fail_peek("recursion limit exceeded");
  advance();
  json out = c == '[' ? json::array() : json::object();
  if (c == '[') {
    for (bool first = true; next_element(first); first = false)
      out.push_back(read_any());
  } else {
    std::string key;
    for (bool first = true; next_key(first, key); first = false) {
      read_colon();
      out[key] = read_any();
    }
  }
  advance();
  ++depth_;
  return out;
}

void json_reader::read_end() {
  if (peek() != -1)
    fail_peek("trailing characters");
}

} // namespace caisson::cloud_hypervisor::api_double
