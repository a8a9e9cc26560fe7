#include "config/problem.hpp"

#include <algorithm>

namespace caisson::config {

std::string to_string(const place& where) {
  if (where.file.empty())
    return where.other;
  return escaped(where.file, 4096) + ':' + std::to_string(std::max(1U, where.at.line)) + ':' +
         std::to_string(std::max(1U, where.at.column));
}

problem make_problem(const place& where, const finding& parts) {
  problem out;
  out.set_file(escaped(where.file, 4096));
  if (!where.file.empty()) {
    out.set_line(std::max(1U, where.at.line));
    out.set_column(std::max(1U, where.at.column));
  }
  out.set_key(escaped(parts.key, 256));
  out.set_found(escaped(parts.found));
  out.set_allowed(parts.allowed);
  out.set_nearest(escaped(parts.nearest, 4096));
  out.set_severity(parts.severity);
  std::string text = to_string(where) + ": ";
  if (!parts.key.empty())
    text += out.key() + (parts.found.empty() ? "" : " = " + out.found()) + ": ";
  text += parts.what;
  if (!parts.allowed.empty())
    text += "; allowed: " + parts.allowed;
  if (!parts.nearest.empty())
    text += "; did you mean " + out.nearest() + "?";
  out.set_text(std::move(text));
  return out;
}

bool has_error(const std::vector<problem>& problems) {
  return std::any_of(problems.begin(), problems.end(),
                     [](const problem& each) { return each.severity() == v1::CONFIG_SEVERITY_ERROR; });
}

} // namespace caisson::config
