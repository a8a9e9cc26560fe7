#include <nlohmann/json.hpp>

#include "config/tell.hpp"

namespace caisson::config {
namespace {

using json = nlohmann::ordered_json;

json schema_of(const key& row) {
  json out;
  out["description"] = std::string{row.doc} + (row.unit.empty() ? "" : " Unit: " + std::string{row.unit} + '.') +
                       (row.why.empty() ? ""
                                        : (row.what == treatment::refused ? " Refused: " : " No meaning in Caisson: ") +
                                              std::string{row.why} + '.');
  switch (row.type) {
  case value_type::boolean:
    out["type"] = "boolean";
    break;
  case value_type::integer:
  case value_type::number:
    out["type"] = row.type == value_type::integer ? "integer" : "number";
    out["minimum"] = row.low;
    out["maximum"] = row.high;
    break;
  case value_type::text:
    out["type"] = "string";
    if (!row.choices.empty()) {
      std::string_view rest = row.choices;
      while (true) {
        const auto bar = rest.find('|');
        out["enum"].push_back(std::string{rest.substr(0, bar)});
        if (bar == rest.npos)
          break;
        rest.remove_prefix(bar + 1);
      }
    }
    break;
  case value_type::text_list:
    out["type"] = "array";
    out["items"] = {{"type", "string"}};
    break;
  case value_type::tables:
    out["type"] = "array";
    out["items"] = {{"type", "object"}};
    break;
  }
  const auto& preset = preset_of(row, true);
  if (!std::holds_alternative<std::monostate>(preset))
    std::visit(
        [&](const auto& content) {
          if constexpr (!std::is_same_v<std::decay_t<decltype(content)>, std::monostate>)
            out["default"] = content;
        },
        preset);
  if (row.what == treatment::refused)
    out["deprecated"] = true;
  return out;
}

json table_of(table in) {
  json out = {{"type", "object"}, {"additionalProperties", false}};
  for (const auto& row : all_keys())
    if (row.in == in)
      out["properties"][std::string{row.name}] = schema_of(row);
  return out;
}

} // namespace

std::string json_schema(const hypervisor_names& names) {
  json out;
  out["$schema"] = "https://json-schema.org/draft/2020-12/schema";
  out["title"] = "Caisson's configuration.toml";
  out["type"] = "object";
  out["additionalProperties"] = false;
  auto hypervisor = table_of(table::hypervisor);
  hypervisor["properties"]["factory"] = table_of(table::hypervisor_factory);
  out["$defs"]["hypervisor"] = std::move(hypervisor);
  json hypervisors = {{"type", "object"}, {"additionalProperties", false}};
  for (const auto& each : names.all())
    hypervisors["properties"][each.name] = {{"$ref", "#/$defs/hypervisor"}};
  auto agent = table_of(table::agent);
  agent["properties"]["mem_agent"] = table_of(table::mem_agent);
  const auto only_kata = [](json inner) {
    return json{{"type", "object"}, {"additionalProperties", false}, {"properties", {{"kata", std::move(inner)}}}};
  };
  auto& top = out["properties"];
  top["hypervisor"] = std::move(hypervisors);
  top["factory"] = table_of(table::factory);
  top["agent"] = only_kata(std::move(agent));
  top["runtime"] = table_of(table::runtime);
  top["runtime"]["properties"]["caisson"] = table_of(table::runtime_caisson);
  top["proxy"] = only_kata(table_of(table::proxy));
  top["shim"] = only_kata(table_of(table::shim));
  top["netmon"] = table_of(table::netmon);
  return out.dump(2) + '\n';
}

} // namespace caisson::config
