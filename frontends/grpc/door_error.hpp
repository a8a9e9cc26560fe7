#pragma once

/// Errors as a door handles them: the rows of messages/error.hpp without its CAF types, so that units that include gRPC
/// stay light.

#include <string>
#include <string_view>

#include "messages/error.pb.h"

namespace caisson::door {

/// An error of the row with this name; an unknown name gives `internal`.
v1::Error make_error(std::string_view row_name, std::string text);

/// gRPC code of the error's row; 13 (INTERNAL) where its code is unknown.
int grpc_code_of(const v1::Error& e) noexcept;

} // namespace caisson::door
