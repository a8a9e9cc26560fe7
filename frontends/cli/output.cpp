#include "frontends/cli/output.hpp"

#include <poll.h>
#include <unistd.h>

#include <google/protobuf/util/json_util.h>

#include <cerrno>
#include <cstdio>

namespace caisson::cli {

std::string to_json(const google::protobuf::Message& m, bool one_line) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = true;
  options.add_whitespace = !one_line;
  std::string out;
  (void)google::protobuf::util::MessageToJsonString(m, &out, options);
  while (!out.empty() && out.back() == '\n')
    out.pop_back();
  return out;
}

void print_json(const google::protobuf::Message& m, bool one_line) {
  write_all(1, to_json(m, one_line) + "\n");
}

void print_error(const v1::Error& e, bool json) {
  if (json) {
    write_all(2, "{\"error\":" + to_json(e, true) + "}\n");
    return;
  }
  std::string out = "caisson: " + e.text() + "\n";
  for (const auto& line : e.console_tail())
    out += "  | " + line + "\n";
  write_all(2, out);
}

void print_notice(const std::string& text, bool json) {
  if (!json)
    write_all(2, "caisson: " + text + "\n");
}

std::string table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<std::size_t> width;
  for (const auto& row : rows) {
    width.resize(std::max(width.size(), row.size()));
    for (std::size_t i = 0; i < row.size(); ++i)
      width[i] = std::max(width[i], row[i].size());
  }
  std::string out;
  for (const auto& row : rows) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) {
      line += row[i];
      if (i + 1 < row.size())
        line.append(width[i] - row[i].size() + 2, ' ');
    }
    out += line + "\n";
  }
  return out;
}

bool write_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    auto n = ::write(fd, bytes.data(), bytes.size());
    if (n > 0) {
      bytes.remove_prefix(static_cast<std::size_t>(n));
    } else if (n < 0 && errno == EAGAIN) {
      pollfd p{fd, POLLOUT, 0};
      ::poll(&p, 1, -1);
    } else if (n < 0 && errno != EINTR) {
      return false;
    }
  }
  return true;
}

} // namespace caisson::cli
