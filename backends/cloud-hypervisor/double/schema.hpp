#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "backends/cloud-hypervisor/double/json_reader.hpp"
#include "backends/cloud-hypervisor/double/profile.hpp"

namespace caisson::cloud_hypervisor::api_double {

struct record;

/// What a value may be. Integers name their width, as the API's errors do.
struct shape {
  enum class kind { boolean, u8, u16, u32, u64, usize, i32, text, path, choice, record, list } what;
  std::shared_ptr<const record> of;    ///< of a record
  std::vector<std::string> choices;    ///< of a choice
  std::shared_ptr<const shape> element; ///< of a list
};

/// A member of a record, in the order in which the API writes it back.
struct field {
  enum class presence { required, optional, preset };
  std::string name;
  shape type;
  presence when = presence::optional;
  json value;              ///< of a preset: what it is when nothing is given
  bool flattened = false;  ///< read after all the others, so that its errors stand at the record's end
  bool hidden_false = false; ///< not written back while it is false
  std::string also;        ///< a second name that is understood
};

struct record {
  std::string rust_name; ///< as errors name it
  std::vector<field> fields;
  bool refuse_unknown = false;
  bool shows_null = false; ///< optional members that are not given are written back as null
};

/// The bodies of the API's requests, in one release.
struct schema {
  std::shared_ptr<const record> vm, disk, net, fs, pmem, vsock, vdpa, generic_vhost_user, device, user_device, resize,
      resize_disk, resize_zone, remove_device, snapshot, restore, receive_migration, send_migration;
};

[[nodiscard]] schema make_schema(profile p);

/// Reads `text` as a record: every member with its preset, unknown ones dropped, in the API's order. Otherwise the
/// text of what is wrong, with line and column.
[[nodiscard]] std::variant<json, std::string> decode(std::string_view text, const record& as);

/// The record as the API writes it back: in the schema's order, with null where the release shows what is not given.
[[nodiscard]] json written(const json& value, const record& as);

} // namespace caisson::cloud_hypervisor::api_double
