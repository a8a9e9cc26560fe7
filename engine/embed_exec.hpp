#pragma once

/// One exec of an embedding program: feeds stdin as the guest grants credit, collects output up to a limit and counts the
/// rest, so that a flooding command costs no memory.

#include <functional>
#include <memory>
#include <mutex>

#include "engine/embed_convert.hpp"

namespace caisson::embedding {

class collected_exec : public std::enable_shared_from_this<collected_exec> {
public:
  collected_exec(std::string stdin_bytes, std::function<void(result<exec_result>)> then)
      : stdin_(std::move(stdin_bytes)), then_(std::move(then)) {}

  /// Once. `then` comes once, on a thread of the engine.
  void start(service& on, const v1::ExecRequest& what);

  /// The process gets SIGHUP; `then` does not come any more.
  void hang_up();

private:
  enum class stream { out, err };
  void on_output(stream which, std::string_view bytes);
  void on_end(outcome<v1::ExecExited> how);
  void feed();

  std::mutex mutex_;
  std::shared_ptr<exec_session> session_;
  std::string stdin_;
  std::size_t fed_bytes_ = 0;
  std::size_t owed_out_bytes_ = 0;  // credit for output that came before start() had the session
  std::size_t owed_err_bytes_ = 0;
  bool started_ = false, ended_ = false, stdin_closed_ = false, write_pending_ = false, feeding_ = false;
  exec_result collected_;
  std::function<void(result<exec_result>)> then_;
};

} // namespace caisson::embedding
