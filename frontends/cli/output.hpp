#pragma once

#include <string>
#include <vector>

#include <google/protobuf/message.h>

#include "messages/error.pb.h"

namespace caisson::cli {

/// Results go to stdout. JSON is protobuf's with proto field names and every primitive field printed; 64-bit values are
/// decimal strings. `one_line` for streams of objects.
std::string to_json(const google::protobuf::Message& m, bool one_line = false);
void print_json(const google::protobuf::Message& m, bool one_line = false);

/// Errors go to stderr: "caisson: TEXT" and the console's last lines indented, or {"error":{...}} in one line.
void print_error(const v1::Error& e, bool json);

/// To stderr, "caisson: TEXT"; nothing with json, where stderr is for the error alone.
void print_notice(const std::string& text, bool json);

/// Columns as wide as their widest cell, two blanks between; the first row is the heading.
std::string table(const std::vector<std::vector<std::string>>& rows);

/// Everything or false (the reader has gone).
bool write_all(int fd, std::string_view bytes);

} // namespace caisson::cli
