#pragma once

/// An error on the wire: gRPC's code from the error's row, the sentence as message, and the whole v1::Error in the
/// trailing metadata "caisson-error-bin".

#include <grpcpp/client_context.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include "frontends/grpc/door_error.hpp"

namespace caisson::door {

inline constexpr const char* error_key = "caisson-error-bin";
inline constexpr int max_metadata_bytes = 64 * 1024; // gRPC's default of 8 KiB is too small for a console's last lines

inline grpc::Status to_status(v1::Error e, grpc::ServerContextBase& context) {
  if (e.code().empty())
    e = make_error("internal", "the engine answered an error without a code");
  // Base64 and the metadata's other entries have to fit too.
  while (e.console_tail_size() > 0 && e.ByteSizeLong() > max_metadata_bytes / 2)
    e.mutable_console_tail()->DeleteSubrange(0, 1);
  if (e.text().size() > 16 * 1024)
    e.mutable_text()->resize(16 * 1024);
  context.AddTrailingMetadata(error_key, e.SerializeAsString());
  return {static_cast<grpc::StatusCode>(grpc_code_of(e)), e.text().substr(0, 1024)};
}

inline v1::Error from_status(const grpc::Status& status, const grpc::ClientContext& context,
                             const std::string& socket) {
  const auto& trailing = context.GetServerTrailingMetadata();
  if (auto at = trailing.find(error_key); at != trailing.end()) {
    v1::Error e;
    if (e.ParseFromArray(at->second.data(), static_cast<int>(at->second.size())))
      return e;
  }
  auto where = "the engine (socket " + socket + ")";
  switch (status.error_code()) {
  case grpc::StatusCode::UNAVAILABLE:
    return make_error("backend_lost", where + " has gone: " + status.error_message() +
                                          "; sandboxes run on: give the command again, it starts a new engine");
  case grpc::StatusCode::DEADLINE_EXCEEDED:
    return make_error("deadline_exceeded", where + " has not answered in time: it hangs or is stopped; see its "
                                                   "log (engine.log in the state directory's logs), or end its process "
                                                   "(caissond): sandboxes run on and the next command finds them");
  case grpc::StatusCode::CANCELLED:
    return make_error("cancelled", where + ": the call was cancelled");
  case grpc::StatusCode::UNIMPLEMENTED:
    return make_error("unsupported", where + " does not know this call: it is of another version; end it "
                                             "(SIGTERM) and give the command again");
  default:
    return make_error("internal", where + ": " + status.error_message());
  }
}

} // namespace caisson::door
