// The only place where Boost.Beast is seen. It compiles slowly; keep it alone.

#include "backends/cloud-hypervisor/http_reply.hpp"

#include <boost/asio/buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>

#include <algorithm>
#include <optional>

namespace caisson::cloud_hypervisor {
namespace {

namespace http = boost::beast::http;

using parser = http::response_parser<http::string_body>;

constexpr std::size_t most_start_line_bytes = 1024;
constexpr int most_interim_replies = 8;

} // namespace

struct reply_reader::parts {
  state at = state::wants_more;
  std::optional<parser> reading;
  std::string waiting; // fed, not yet taken by the parser
  bool begun = false;
  int interim_replies = 0;
  std::string error;

  state fail(std::string why) {
    error = std::move(why);
    reading.reset();
    waiting.clear();
    return at = state::broken;
  }

  state fail(const boost::system::error_code& why) {
    if (why == http::error::body_limit || why == http::error::buffer_overflow)
      return fail("its body is longer than " + std::to_string(most_reply_body_bytes) + " bytes");
    if (why == http::error::header_limit)
      return fail("its headers are longer than " + std::to_string(most_reply_header_bytes) + " bytes");
    return fail("it is no HTTP reply (" + why.message() + ")");
  }

  // "HTTP/1.1 503\r\n" is how the server says that it has no free connection; the standard wants a space behind the
  // number. False: the line's end has not come.
  bool start() {
    auto end = waiting.find("\r\n");
    if (std::min(end, waiting.size()) > most_start_line_bytes) {
      fail("it has no status line within " + std::to_string(most_start_line_bytes) + " bytes");
      return false;
    }
    if (end == std::string::npos)
      return false;
    constexpr std::size_t short_line = 12;
    if (end < short_line || !waiting.starts_with("HTTP/1.")) {
      fail("it is no HTTP reply (its first line is \"" + escaped_text(std::string_view{waiting}.substr(0, end), 80) + "\")");
      return false;
    }
    if (end == short_line)
      waiting.insert(short_line, " ");
    reading.emplace();
    reading->header_limit(most_reply_header_bytes);
    reading->body_limit(most_reply_body_bytes);
    // Part by part: an eager parser of Boost 1.74 forgets that a length is beyond the limit when bytes follow the headers.
    reading->eager(false);
    return true;
  }

  state turn() {
    while (at == state::wants_more && !waiting.empty()) {
      if (!reading && !start())
        break;
      boost::system::error_code why;
      auto taken = reading->put(boost::asio::buffer(waiting), why);
      waiting.erase(0, taken);
      if (why && why != http::error::need_more)
        return fail(why);
      // The server never sends chunks, and Boost 1.74 trips over an assertion of its own in the trailer of some.
      if (reading->is_header_done() && reading->chunked())
        return fail("it comes in chunks (Transfer-Encoding), which Cloud Hypervisor's replies never do");
      if (reading->is_done()) {
        if (reading->get().result_int() / 100 != 1)
          return at = state::complete;
        if (++interim_replies > most_interim_replies)
          return fail("it has more than " + std::to_string(most_interim_replies) + " interim replies (1xx)");
        reading.reset();
        continue;
      }
      if (why || taken == 0)
        break;
    }
    return at;
  }
};

reply_reader::reply_reader() : parts_(std::make_unique<parts>()) {}
reply_reader::~reply_reader() = default;

reply_reader::state reply_reader::feed(std::string_view bytes) {
  auto& p = *parts_;
  if (bytes.empty() || p.at == state::broken)
    return p.at;
  p.begun = true;
  p.waiting += bytes;
  return p.turn();
}

reply_reader::state reply_reader::end() {
  auto& p = *parts_;
  if (p.at != state::wants_more)
    return p.at;
  if (!p.begun)
    return p.fail("the connection ended before a byte of it");
  if (!p.reading || !p.reading->is_header_done())
    return p.fail("the connection ended within its headers");
  boost::system::error_code why;
  p.reading->put_eof(why);
  // The server counts the bytes of its 503 generously and closes at once: its status is all that matters.
  if (!why || p.reading->get().result_int() == 503)
    return p.at = state::complete;
  return p.fail("the connection ended within its body");
}

bool reply_reader::begun() const {
  return parts_->begun;
}

std::size_t reply_reader::surplus() const {
  return parts_->at == state::complete ? parts_->waiting.size() : 0;
}

const std::string& reply_reader::error() const {
  return parts_->error;
}

http_reply reply_reader::take() {
  http_reply out;
  if (parts_->at == state::complete && parts_->reading) {
    auto whole = parts_->reading->release();
    out.status = static_cast<int>(whole.result_int());
    out.body = std::move(whole.body());
    if (out.status >= 400)
      out.chain = read_error_chain(out.body);
  }
  parts_->reading.reset();
  return out;
}

void reply_reader::reset() {
  parts_ = std::make_unique<parts>();
}

} // namespace caisson::cloud_hypervisor
