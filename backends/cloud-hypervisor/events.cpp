#include "backends/cloud-hypervisor/events.hpp"

#include <nlohmann/json.hpp>

#include <utility>

namespace caisson::cloud_hypervisor {
namespace {

using nlohmann::json;

constexpr std::string_view blank_line = "\n\n";
constexpr std::size_t most_properties = 32;

bool read_number(const json& from, const char* name, std::uint64_t& into) {
  auto at = from.find(name);
  if (at == from.end() || !at->is_number_unsigned())
    return false;
  into = at->get<std::uint64_t>();
  return true;
}

bool read_text(const json& from, const char* name, std::string& into) {
  auto at = from.find(name);
  if (at == from.end() || !at->is_string())
    return false;
  into = at->get<std::string>();
  return true;
}

bool read_event(std::string_view piece, vmm_event& into) {
  auto all = json::parse(piece, nullptr, false);
  if (!all.is_object() || !read_text(all, "source", into.source) || !read_text(all, "event", into.event))
    return false;
  auto time = all.find("timestamp");
  std::uint64_t nanos = 0;
  if (time == all.end() || !time->is_object() || !read_number(*time, "secs", into.secs) ||
      !read_number(*time, "nanos", nanos) || nanos >= 1'000'000'000)
    return false;
  into.nanos = static_cast<std::uint32_t>(nanos);
  auto properties = all.find("properties");
  if (properties == all.end() || properties->is_null())
    return true;
  if (!properties->is_object())
    return false;
  for (const auto& [name, value] : properties->items()) {
    if (!value.is_string() || into.properties.size() == most_properties)
      return false;
    into.properties.emplace(name, value.get<std::string>());
  }
  return true;
}

bool only_space(std::string_view text) {
  return text.find_first_not_of(" \t\r\n") == text.npos;
}

} // namespace

std::string vmm_event::property(const std::string& name) const {
  auto at = properties.find(name);
  return at == properties.end() ? std::string{} : at->second;
}

void event_parser::take(std::string_view piece, std::vector<vmm_event>& into) {
  if (only_space(piece))
    return;
  vmm_event event;
  if (read_event(piece, event)) {
    into.push_back(std::move(event));
    return;
  }
  ++skipped_;
  // The VMM drops what the pipe does not take: a whole event may stand behind the beginning of another.
  if (auto last = piece.rfind("\n{"); last != piece.npos) {
    vmm_event whole;
    if (read_event(piece.substr(last + 1), whole))
      into.push_back(std::move(whole));
  }
}

std::vector<vmm_event> event_parser::feed(std::string_view bytes) {
  std::vector<vmm_event> out;
  waiting_ += bytes;
  std::size_t begin = 0;
  for (;;) {
    auto end = waiting_.find(blank_line, searched_);
    if (end == std::string::npos)
      break;
    if (end - begin > most_event_bytes && !oversized_)
      ++skipped_;
    else if (!oversized_)
      take(std::string_view{waiting_}.substr(begin, end - begin), out);
    oversized_ = false;
    begin = searched_ = end + blank_line.size();
  }
  waiting_.erase(0, begin);
  if (waiting_.size() > most_event_bytes) {
    if (!std::exchange(oversized_, true))
      ++skipped_;
    waiting_.erase(0, waiting_.size() - 1); // its last byte may begin the blank line
  }
  searched_ = waiting_.empty() ? 0 : waiting_.size() - 1;
  return out;
}

} // namespace caisson::cloud_hypervisor
