#include <nlohmann/json.hpp>

#include <algorithm>

#include "backends/cloud-hypervisor/http_reply.hpp"

namespace caisson::cloud_hypervisor {
namespace {

constexpr std::size_t most_entries = 32;
constexpr std::size_t most_entry_bytes = 1024;

// The HTTP library of the server answers what it cannot parse by itself, with a raw newline inside the JSON string.
constexpr std::string_view library_form = "{ \"error\": \"";

std::string_view library_text(std::string_view body) {
  body.remove_prefix(library_form.size());
  return body.substr(0, body.find_first_of("\n\""));
}

} // namespace

std::string escaped_text(std::string_view text, std::size_t most) {
  constexpr char digits[] = "0123456789abcdef";
  std::string out;
  for (char each : text) {
    auto c = static_cast<unsigned char>(each);
    const bool plain = c >= 0x20 && c < 0x7f && c != '\\';
    const std::size_t needs = plain ? 1 : c == '\\' ? 2 : 4;
    if (out.size() + needs > most)
      break;
    if (plain)
      out += each;
    else if (c == '\\')
      out += "\\\\";
    else
      (((out += "\\x") += digits[c >> 4]) += digits[c & 15]);
  }
  return out;
}

std::vector<std::string> read_error_chain(std::string_view body) {
  std::vector<std::string> out;
  auto add = [&out](std::string_view text) {
    if (out.size() < most_entries && !text.empty())
      out.push_back(escaped_text(text, most_entry_bytes));
  };
  if (body.starts_with(library_form)) {
    add(library_text(body));
    return out;
  }
  auto json = nlohmann::json::parse(body, nullptr, false);
  if (json.is_array()) {
    for (const auto& each : json)
      if (each.is_string())
        add(each.get_ref<const std::string&>());
    if (!out.empty())
      return out;
  } else if (json.is_object()) {
    if (auto error = json.find("error"); error != json.end() && error->is_string()) {
      add(error->get_ref<const std::string&>());
      return out;
    }
  }
  add(body);
  return out;
}

answer_kind answer_of(int status) {
  switch (status) {
  case 400:
    return answer_kind::invalid;
  case 404:
    return answer_kind::missing;
  case 405:
    return answer_kind::wrong_state;
  case 409:
    return answer_kind::conflict;
  case 429:
  case 503:
    return answer_kind::busy;
  default:
    return status / 100 == 2 ? answer_kind::done : status / 100 == 5 ? answer_kind::failed : answer_kind::strange;
  }
}

bool http_reply::says(std::string_view text) const {
  return std::any_of(chain.begin(), chain.end(), [text](const auto& each) { return each.find(text) != each.npos; });
}

std::string http_reply::text() const {
  auto out = "HTTP " + std::to_string(status);
  for (const auto& each : chain)
    out += ": " + each;
  return out.substr(0, 4096);
}

} // namespace caisson::cloud_hypervisor
