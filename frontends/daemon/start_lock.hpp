#pragma once

#include <string>

#include "messages/error.pb.h"

namespace caisson::daemon {

/// Held while an engine of a run directory starts or ends, so that of two starters one waits and then finds the other's
/// engine. Goes with the process.
class start_lock {
public:
  ~start_lock();

  /// Waits at most `seconds` for the present holder. False and `why` where it is not to be had.
  bool take(const std::string& run_directory, unsigned seconds, v1::Error& why);
  void release();

private:
  int fd_ = -1;
};

/// True where somebody listens on this Unix socket.
bool is_served(const std::string& socket);

} // namespace caisson::daemon
