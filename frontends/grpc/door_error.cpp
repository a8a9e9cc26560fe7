#include "frontends/grpc/door_error.hpp"

#include "messages/error.hpp"

namespace caisson::door {

v1::Error make_error(std::string_view row_name, std::string text) {
  const auto* r = row_by_name(row_name);
  return error_message(r ? r->code : ec::internal, std::move(text));
}

int grpc_code_of(const v1::Error& e) noexcept {
  const auto* r = row_by_name(e.code());
  return (r ? *r : row(ec::internal)).grpc_code;
}

} // namespace caisson::door
