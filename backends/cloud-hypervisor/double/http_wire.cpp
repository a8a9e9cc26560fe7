#include "backends/cloud-hypervisor/double/http_wire.hpp"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <utility>

namespace caisson::cloud_hypervisor::api_double {
namespace {

constexpr std::string_view line_end = "\r\n";

std::string_view trimmed(std::string_view s) {
  constexpr std::string_view space = " \t\r\n\v\f";
  const auto from = s.find_first_not_of(space);
  return from == s.npos ? std::string_view{} : s.substr(from, s.find_last_not_of(space) - from + 1);
}

std::string lower(std::string_view s) {
  std::string out{s};
  for (auto& c : out)
    if (c >= 'A' && c <= 'Z')
      c = static_cast<char>(c + 32);
  return out;
}

/// Position of the first byte that is no UTF-8, with how many bytes are wrong (0: the text ends too early).
std::optional<std::string> utf8_problem(std::string_view s) {
  for (std::size_t i = 0; i < s.size();) {
    const auto c = static_cast<unsigned char>(s[i]);
    const std::size_t length = c < 0x80 ? 1 : c >= 0xC2 && c < 0xE0 ? 2 : (c & 0xF0) == 0xE0 ? 3 : c >= 0xF0 && c < 0xF5 ? 4 : 0;
    const auto follows = [&](std::size_t k) { return i + k < s.size() && (s[i + k] & 0xC0) == 0x80; };
    std::size_t good = 1;
    while (length > good && follows(good))
      ++good;
    if (length == 0 || good < length) {
      if (length > 1 && i + good == s.size())
        return "incomplete utf-8 byte sequence from index " + std::to_string(i);
      return "invalid utf-8 sequence of " + std::to_string(good) + " bytes from index " + std::to_string(i);
    }
    i += length;
  }
  return std::nullopt;
}

std::string headers(std::string_view status, std::string_view server, std::optional<std::size_t> length,
                    std::string_view version = "HTTP/1.1") {
  std::string out{version};
  out += " " + std::string{status} + " \r\nServer: " + std::string{server} + "\r\nConnection: keep-alive\r\n";
  if (length)
    out += "Content-Type: application/json\r\nContent-Length: " + std::to_string(*length) + "\r\n";
  return out + "\r\n";
}

std::string absolute_path(std::string_view uri) {
  constexpr std::string_view scheme = "http://";
  if (uri.starts_with(scheme)) {
    const auto slash = uri.find('/', scheme.size());
    return slash == uri.npos ? std::string{} : std::string{uri.substr(slash)};
  }
  return uri.starts_with('/') ? std::string{uri} : std::string{};
}

} // namespace

http_input::result http_input::take(std::size_t count, const std::vector<int>& descriptors) {
  descriptors_.insert(descriptors_.end(), descriptors.begin(), descriptors.end());
  result out;
  const auto end = kept_ + count;
  std::size_t at = 0;
  try {
    for (;;) {
      bool ready = false, more = false;
      switch (phase_) {
      case phase::request_line:
        more = read_request_line(at, end);
        break;
      case phase::headers:
        more = read_header(at, end, out.interim, ready);
        break;
      case phase::body:
        more = ready = read_body(at, end);
        break;
      }
      if (ready) {
        phase_ = phase::request_line;
        pending_.descriptors = std::exchange(descriptors_, {});
        out.requests.push_back(std::exchange(pending_, {}));
      }
      if (!more)
        return out;
    }
  } catch (mistake& m) {
    out.mistake = std::move(m.text);
    for (const auto& dropped : std::exchange(out.requests, {}))
      for (const auto fd : dropped.descriptors)
        ::close(fd);
    return out;
  }
}

void http_input::keep(std::size_t from, std::size_t end) {
  std::memmove(buffer_.data(), buffer_.data() + from, end - from);
  kept_ = end - from;
}

bool http_input::read_request_line(std::size_t& at, std::size_t end) {
  const std::string_view rest{buffer_.data() + at, end - at};
  const auto found = rest.find(line_end);
  if (found == rest.npos) {
    if (end == buffer_.size() && at == 0)
      throw mistake{"Invalid request."};
    keep(at, end);
    return false;
  }
  const auto line = rest.substr(0, found);
  at += found + line_end.size();
  const auto first = line.find(' ');
  const auto second = first == line.npos ? line.npos : line.find(' ', first + 1);
  if (second == line.npos)
    throw mistake{"Invalid request."};
  const auto method = line.substr(0, first), uri = line.substr(first + 1, second - first - 1),
             version = line.substr(second + 1);
  if (method != "GET" && method != "PUT" && method != "PATCH")
    throw mistake{"Invalid HTTP Method: Unsupported HTTP method."};
  if (uri.empty())
    throw mistake{"Invalid URI: Empty URI not allowed."};
  if (utf8_problem(uri))
    throw mistake{"Invalid URI: Cannot parse URI as UTF-8."};
  if (version != "HTTP/1.0" && version != "HTTP/1.1")
    throw mistake{"Invalid HTTP Version: Unsupported HTTP version."};
  pending_ = {std::string{method}, absolute_path(uri), std::nullopt, {}};
  version_ = version;
  length_ = 0;
  expect_ = false;
  phase_ = phase::headers;
  return true;
}

bool http_input::read_header(std::size_t& at, std::size_t end, std::string& interim, bool& ready) {
  const std::string_view rest{buffer_.data() + at, end - at};
  const auto found = rest.find(line_end);
  if (found == rest.npos) {
    if (end == buffer_.size() && at == 0)
      throw mistake{"Invalid header. Reason: Invalid content length. Header: " + std::string{rest}};
    keep(at, end);
    return false;
  }
  if (found > 0) {
    header(rest.substr(0, found));
    at += found + line_end.size();
    return true;
  }
  if (length_ == 0) {
    ready = true;
  } else {
    if (length_ > limit_)
      throw mistake{"Request payload with size " + std::to_string(length_) + " is larger than the limit of " +
                    std::to_string(limit_) + " allowed by server."};
    if (expect_)
      interim += headers("100", "Firecracker API", std::nullopt, version_);
    missing_ = length_;
    pending_.body.emplace();
    phase_ = phase::body;
  }
  at += line_end.size();
  return true;
}

void http_input::header(std::string_view line) {
  const auto invalid = [](const std::string& why) { return mistake{"Invalid header. Reason: " + why}; };
  if (const auto problem = utf8_problem(line))
    throw invalid("Header contains invalid characters. Key: " + *problem);
  const auto colon = line.find(':');
  if (colon == line.npos)
    throw invalid("Header is incorrectly formatted. Key: " + std::string{line});
  const auto name = lower(trimmed(line.substr(0, colon)));
  const auto raw = line.substr(colon + 1);
  const auto value = trimmed(raw);
  if (name == "content-length") {
    auto digits = value;
    if (digits.starts_with('+'))
      digits.remove_prefix(1);
    std::uint32_t length = 0;
    const auto [stop, problem] = std::from_chars(digits.data(), digits.data() + digits.size(), length);
    if (digits.empty() || problem != std::errc{} || stop != digits.data() + digits.size())
      throw invalid("Invalid value. Key:" + std::string{line.substr(0, colon)} + "; Value:" + std::string{raw});
    length_ = length;
  } else if (name == "expect") {
    expect_ = expect_ || value == "100-continue";
  } else if (name == "accept-encoding") {
    if (value.empty())
      throw mistake{"Invalid request."};
    for (std::size_t from = 0; from <= value.size();) {
      const auto comma = std::min(value.find(',', from), value.size());
      const auto given = value.substr(from, comma - from), encoding = trimmed(given);
      if (encoding == "identity;q=0" || (encoding == "*;q=0" && value.find("identity") == value.npos))
        throw invalid("Invalid value. Key:Accept-Encoding; Value:" + std::string{given});
      from = comma + 1;
    }
  }
}

bool http_input::read_body(std::size_t& at, std::size_t end) {
  const auto here = std::min<std::size_t>(missing_, end - at);
  body_.append(buffer_.data() + at, here);
  missing_ -= static_cast<std::uint32_t>(here);
  at += here;
  if (missing_ > 0) {
    kept_ = 0;
    return false;
  }
  pending_.body = std::exchange(body_, {});
  return true;
}

std::string wire_text(const reply& r) {
  const bool bare = r.code == 204;
  return headers(std::to_string(r.code), "Cloud Hypervisor API",
                 bare ? std::nullopt : std::optional{r.body ? r.body->size() : 0}) +
         (bare ? std::string{} : r.body.value_or(std::string{}));
}

std::string mistake_text(const std::string& what) {
  const auto body = "{ \"error\": \"" + what + "\nAll previous unanswered requests will be dropped.\" }";
  return headers("400", "Firecracker API", body.size()) + body;
}

std::string_view full_text() {
  return "HTTP/1.1 503\r\nServer: Firecracker API\r\nConnection: close\r\nContent-Length: 40\r\n\r\n"
         "{ \"error\": \"Too many open connections\" }";
}

} // namespace caisson::cloud_hypervisor::api_double
