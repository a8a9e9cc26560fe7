#pragma once

/// Between caisson.v1 and the std types of caisson/engine.hpp.

#include "engine/embed_service.hpp"

#include <caisson/engine.hpp>

namespace caisson::embedding {

error to_public(const v1::Error& e);
sandbox_status to_public(const v1::SandboxStatus& s);
operation to_public(const v1::Operation& o);
event to_public(const v1::Event& e);
std::vector<sandbox_status> to_public(const v1::SandboxList& l);

error make_public_error(std::string code, std::string text);

v1::CreateSandbox to_proto(const sandbox_options& o);
v1::ResizeSandbox to_proto(const std::string& sandbox, const resize_request& r);
v1::ExecRequest to_proto(const std::string& sandbox, const exec_request& r);

/// Texts travel as UTF-8. Empty code: all of it is.
error check_texts(const sandbox_options& o);
error check_texts(const std::string& sandbox, const exec_request& r);
error check_text(std::string_view what, std::string_view text);

} // namespace caisson::embedding
