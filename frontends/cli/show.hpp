#pragma once

/// What people read: the texts of status, list, operations and events.

#include <string>

#include "messages/backend.pb.h"
#include "messages/sandbox.pb.h"

namespace caisson::cli {

std::string show_state(v1::SandboxState s);  ///< "running"
std::string show_time(std::int64_t unix_ms); ///< local, "2026-01-31 12:00:00"; "" for 0
std::string show_status(const v1::SandboxStatus& s);
std::string show_engine(const v1::EngineStatus& e);      ///< with the host's budget
std::string show_list(const v1::SandboxList& l);
std::string show_operation(const v1::Operation& o);      ///< asked, plugged, guest; how it ended and why
std::string show_plan(const v1::Operation& o);           ///< of a dry run
std::string show_operation_line(const v1::Operation& o); ///< one line, for progress
std::string show_capabilities(const v1::Capabilities& p, const std::string& indent); ///< a line each
std::string show_event(const v1::Event& e);              ///< one line

} // namespace caisson::cli
