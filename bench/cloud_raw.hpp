#pragma once

/// Cloud Hypervisor with nothing of ours around it, as fast as its REST API lets a client be: one kept connection,
/// blocking calls. The raw side of a comparison; calls block, and nothing here is thread safe.

#include <sys/types.h>

#include <string>

#include "backends/cloud-hypervisor/requests.hpp"

namespace caisson::bench {

struct raw_answer {
  int status = 0; ///< of HTTP; 0: no answer
  std::string body;
  bool ok() const { return status == 200 || status == 204; }
};

class cloud_raw {
public:
  /// Starts `program` and waits until its socket at `socket` takes a connection. `failed()` says why it did not.
  cloud_raw(const std::string& program, const std::string& socket);
  ~cloud_raw(); ///< kills what is left
  cloud_raw(const cloud_raw&) = delete;
  cloud_raw& operator=(const cloud_raw&) = delete;

  const std::string& failed() const { return failure_; }
  raw_answer ask(const cloud_hypervisor::request& what);
  /// Until the process has ended. False: it still runs after that time.
  bool await_end(int within_ms);

private:
  bool connected();
  bool more(std::string& into);

  std::string socket_, failure_;
  pid_t pid_ = -1;
  int pidfd_ = -1, fd_ = -1;
};

} // namespace caisson::bench
