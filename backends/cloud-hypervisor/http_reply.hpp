#pragma once

/// One reply of the API server, read from bytes that come in any pieces. No socket in here; Boost.Beast is behind it.

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace caisson::cloud_hypervisor {

/// Bounds of one reply. Real ones stay below 100 KiB (vm.info of a VM with many devices).
inline constexpr std::size_t most_reply_header_bytes = 16 * 1024;
inline constexpr std::size_t most_reply_body_bytes = 4 << 20;

/// What a status means, whatever the verb. The VMM documents some that it never sends (405) and sends some that it does
/// not document (400 and 500 of vm.create).
enum class answer_kind {
  done,        ///< 2xx
  invalid,     ///< 400: request or configuration; up to v53 a configuration's fault is `failed`
  missing,     ///< 404: no VM, no such device; up to v52 `failed`
  wrong_state, ///< 405
  conflict,    ///< 409: an id that is taken; up to v53 `failed`
  busy,        ///< 429: a vCPU is still leaving; 503: no free connection. Later it may work
  failed,      ///< other 5xx: everything else, look at the chain
  strange      ///< none of these: no Cloud Hypervisor
};
answer_kind answer_of(int status);

struct http_reply {
  int status = 0;
  std::string body;
  /// What went wrong, outermost first, for a status of 400 and above: the JSON array of strings (v47 and later), the
  /// plain text before it, or the HTTP library's own {"error": ...}. Bounded (32 entries of 1 KiB) and escaped.
  std::vector<std::string> chain;

  bool ok() const { return status >= 200 && status < 300; }
  /// Some entry of the chain contains `text`. The wording differs between versions: never compare whole texts.
  bool says(std::string_view text) const;
  /// "HTTP 500: Error from API: The VM could not be resized: ...".
  std::string text() const;
};

/// The body of an error reply, whatever its form, as a chain. Never fails.
std::vector<std::string> read_error_chain(std::string_view body);

/// For messages and logs: printable ASCII stays (a backslash is doubled), everything else becomes \xNN; at most `most` bytes.
std::string escaped_text(std::string_view text, std::size_t most);

class reply_reader {
public:
  enum class state {
    wants_more,
    complete, ///< take() has the reply; what was fed beyond it is `surplus()`
    broken    ///< error() says why; the connection is of no use any more
  };

  reply_reader();
  ~reply_reader();
  reply_reader(const reply_reader&) = delete;
  reply_reader& operator=(const reply_reader&) = delete;

  state feed(std::string_view bytes);
  /// The connection has ended. Complete when the reply's end is the connection's, or when a 503 has lost its last bytes.
  state end();

  /// Any byte of a reply has come.
  bool begun() const;
  /// Bytes after the reply: nobody has asked for them.
  std::size_t surplus() const;
  const std::string& error() const;
  /// Once, when complete.
  http_reply take();
  /// For the next reply on the same connection.
  void reset();

private:
  struct parts;
  std::unique_ptr<parts> parts_;
};

} // namespace caisson::cloud_hypervisor
