#pragma once

/// Our own schema of the subset of Cloud Hypervisor's API that we use: one table of endpoints and objects, valid for all
/// versions that we take. `violation` (requests.hpp) holds every request against it; a test holds it against the VMM's own
/// documents.

#include <cstdint>
#include <span>
#include <string_view>

namespace caisson::cloud_hypervisor::schema {

enum class kind { boolean, integer, text, object, list }; // list: of objects

struct object;

struct field {
  std::string_view name;
  kind type = kind::text;
  bool required = false;
  std::int64_t least = 0; ///< integers
  std::int64_t most = 0;
  std::span<const std::string_view> choices; ///< texts: empty takes all
  const object* of = nullptr;                ///< objects and lists
};

struct object {
  std::string_view name; ///< of the component in the VMM's document
  std::span<const field> fields;
  bool one_field = false; ///< exactly one of them is sent
};

struct endpoint {
  std::string_view method;
  std::string_view verb;
  const object* body = nullptr; ///< null: no body, not even {}
};

std::span<const endpoint> endpoints();

/// The limit of versions before v54; later ones take more.
inline constexpr std::size_t most_body_bytes = 51'200;
inline constexpr std::string_view path_prefix = "/api/v1/";

} // namespace caisson::cloud_hypervisor::schema
