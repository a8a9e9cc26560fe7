#include "backends/cloud-hypervisor/double/schema.hpp"

#include <algorithm>
#include <limits>
#include <map>
#include <optional>

namespace caisson::cloud_hypervisor::api_double {
namespace {

using kind = shape::kind;

std::string expected(const shape& s) {
  switch (s.what) {
  case kind::boolean:
    return "a boolean";
  case kind::u8:
    return "u8";
  case kind::u16:
    return "u16";
  case kind::u32:
    return "u32";
  case kind::u64:
    return "u64";
  case kind::usize:
    return "usize";
  case kind::i32:
    return "i32";
  case kind::text:
    return "a string";
  case kind::path:
    return "path string";
  case kind::list:
    return "a sequence";
  case kind::record:
    return "struct " + s.of->rust_name;
  case kind::choice:
    break;
  }
  return "string or map";
}

std::string shown(const json& v) {
  switch (v.type()) {
  case json::value_t::null:
    return "null";
  case json::value_t::boolean:
    return std::string{"boolean `"} + (v.get<bool>() ? "true`" : "false`");
  case json::value_t::string:
    return "string " + json(v).dump();
  case json::value_t::number_float:
    return "floating point `" + v.dump() + "`";
  case json::value_t::array:
    return "sequence";
  case json::value_t::object:
    return "map";
  default:
    return "integer `" + v.dump() + "`";
  }
}

std::uint64_t most(kind k) {
  switch (k) {
  case kind::u8:
    return std::numeric_limits<std::uint8_t>::max();
  case kind::u16:
    return std::numeric_limits<std::uint16_t>::max();
  case kind::u32:
    return std::numeric_limits<std::uint32_t>::max();
  case kind::i32:
    return std::numeric_limits<std::int32_t>::max();
  default:
    return std::numeric_limits<std::uint64_t>::max();
  }
}

[[noreturn]] void mistyped(const json& v, const shape& s) {
  throw json_problem{"invalid type: " + shown(v) + ", expected " + expected(s)};
}

std::string listed(const std::vector<std::string>& names) {
  if (names.size() == 1)
    return "`" + names[0] + "`";
  if (names.size() == 2)
    return "`" + names[0] + "` or `" + names[1] + "`";
  std::string out = "one of ";
  for (std::size_t i = 0; i < names.size(); ++i)
    out += (i ? ", `" : "`") + names[i] + "`";
  return out;
}

/// A value that holds no others, against its shape.
json checked(json v, const shape& s) {
  switch (s.what) {
  case kind::boolean:
    if (!v.is_boolean())
      mistyped(v, s);
    return v;
  case kind::text:
  case kind::path:
    if (!v.is_string())
      mistyped(v, s);
    return v;
  case kind::choice:
    if (!v.is_string())
      mistyped(v, s);
    if (std::find(s.choices.begin(), s.choices.end(), v.get<std::string>()) == s.choices.end())
      throw json_problem{"unknown variant `" + v.get<std::string>() + "`, expected " + listed(s.choices)};
    return v;
  default:
    break;
  }
  if (!v.is_number_integer())
    mistyped(v, s);
  const bool negative = !v.is_number_unsigned() && v.get<std::int64_t>() < 0;
  const bool fits = negative ? s.what == kind::i32 && v.get<std::int64_t>() >= std::numeric_limits<std::int32_t>::min()
                             : v.get<std::uint64_t>() <= most(s.what);
  if (!fits)
    throw json_problem{"invalid value: integer `" + v.dump() + "`, expected " + expected(s)};
  return v;
}

class decoder {
public:
  explicit decoder(std::string_view text) : in_{text} {}

  json whole(const record& r) {
    auto out = read_record(r);
    in_.read_end();
    return out;
  }

private:
  json read(const shape& s) {
    const auto c = in_.peek();
    if (s.what == kind::record)
      return read_record(*s.of);
    if (s.what == kind::list) {
      if (c != '[')
        wrong(s);
      in_.advance();
      json out = json::array();
      for (bool first = true; in_.next_element(first); first = false)
        out.push_back(read(*s.element));
      in_.advance();
      return out;
    }
    if (c == '[' || c == '{')
      wrong(s);
    if (s.what == kind::choice && c != '"')
      in_.fail_peek(c == -1 ? "EOF while parsing a value" : "expected value");
    auto v = in_.read_any();
    try {
      return checked(std::move(v), s);
    } catch (json_problem& p) {
      in_.fail(std::move(p.text));
    }
  }

  [[noreturn]] void wrong(const shape& s) {
    const auto c = in_.peek();
    if (c == '[' || c == '{')
      in_.fail(std::string{"invalid type: "} + (c == '[' ? "sequence" : "map") + ", expected " + expected(s));
    const auto v = in_.read_any();
    in_.fail("invalid type: " + shown(v) + ", expected " + expected(s));
  }

  std::optional<json> read_member(const field& f) {
    if (f.when == field::presence::optional && in_.peek() == 'n') {
      (void)in_.read_any();
      return std::nullopt;
    }
    return read(f.type);
  }

  /// A record may come as a list of all its members; one that is too short is refused at the first that has no preset.
  [[noreturn]] void read_as_list(const record& r) {
    const auto list = in_.read_any();
    const auto missing = std::find_if(r.fields.begin(), r.fields.end(),
                                      [](const field& f) { return f.when != field::presence::preset; });
    const auto length = std::max<std::size_t>(list.size(), static_cast<std::size_t>(missing - r.fields.begin()));
    in_.fail("invalid length " + std::to_string(length) + ", expected struct " + r.rust_name + " with " +
             std::to_string(r.fields.size()) + " elements");
  }

  json read_record(const record& r) {
    if (in_.peek() == -1)
      in_.fail_peek("EOF while parsing a value");
    if (in_.peek() == '[')
      read_as_list(r);
    if (in_.peek() != '{')
      wrong({kind::record, std::make_shared<record>(r), {}, nullptr});
    in_.advance();
    std::map<std::string, std::optional<json>> given;
    std::map<std::string, json> captured;
    json out;
    std::string problem;
    try {
      std::string key;
      for (bool first = true; in_.next_key(first, key); first = false) {
        const auto f = std::find_if(r.fields.begin(), r.fields.end(),
                                    [&](const field& x) { return x.name == key || (!x.also.empty() && x.also == key); });
        if (f == r.fields.end() && r.refuse_unknown) {
          std::vector<std::string> names;
          for (const auto& x : r.fields)
            names.push_back(x.name);
          throw json_problem{"unknown field `" + key + "`, expected " + listed(names)};
        }
        if (f != r.fields.end() && given.contains(f->name))
          throw json_problem{"duplicate field `" + f->name + "`"};
        in_.read_colon();
        if (f == r.fields.end())
          (void)in_.read_any();
        else if (f->flattened)
          captured[f->name] = in_.read_any();
        else
          given[f->name] = read_member(*f);
      }
      out = assembled(r, given, captured);
    } catch (json_problem& p) {
      if (p.placed)
        throw;
      problem = std::move(p.text);
    }
    if (in_.peek() == '}')
      in_.advance();
    if (!problem.empty())
      in_.fail(problem);
    return out;
  }

  static json assembled(const record& r, std::map<std::string, std::optional<json>>& given,
                        std::map<std::string, json>& captured) {
    for (const bool flattened : {false, true})
      for (const auto& f : r.fields) {
        if (f.flattened != flattened)
          continue;
        if (flattened && captured.contains(f.name)) {
          auto v = std::move(captured[f.name]);
          if (f.when == field::presence::optional && v.is_null())
            given[f.name] = std::nullopt;
          else
            given[f.name] = checked(std::move(v), f.type);
        }
        if (!given.contains(f.name) && f.when == field::presence::required)
          throw json_problem{"missing field `" + f.name + "`"};
      }
    json out = json::object();
    for (const auto& f : r.fields) {
      const auto it = given.find(f.name);
      auto v = it != given.end() ? it->second : f.when == field::presence::preset ? std::optional{f.value} : std::nullopt;
      if (v && !(f.hidden_false && *v == false))
        out[f.name] = std::move(*v);
    }
    return out;
  }

  json_reader in_;
};

} // namespace

std::variant<json, std::string> decode(std::string_view text, const record& as) {
  try {
    return decoder{text}.whole(as);
  } catch (json_problem& p) {
    return std::move(p.text);
  }
}

json written(const json& value, const record& as) {
  json out = json::object();
  for (const auto& f : as.fields) {
    const auto it = value.find(f.name);
    if (it == value.end()) {
      if (as.shows_null && f.when == field::presence::optional)
        out[f.name] = nullptr;
      continue;
    }
    if (f.type.what == kind::record) {
      out[f.name] = written(*it, *f.type.of);
    } else if (f.type.what == kind::list && f.type.element->what == kind::record) {
      out[f.name] = json::array();
      for (const auto& element : *it)
        out[f.name].push_back(written(element, *f.type.element->of));
    } else {
      out[f.name] = *it;
    }
  }
  return out;
}

} // namespace caisson::cloud_hypervisor::api_double
