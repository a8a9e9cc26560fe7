#include "engine/embed_convert.hpp"

namespace caisson::embedding {
namespace {

sandbox_state to_public(v1::SandboxState s) {
  switch (s) {
  case v1::SANDBOX_STATE_RUNNING: return sandbox_state::running;
  case v1::SANDBOX_STATE_PAUSED: return sandbox_state::paused;
  case v1::SANDBOX_STATE_STOPPING: return sandbox_state::stopping;
  case v1::SANDBOX_STATE_STOPPED: return sandbox_state::stopped;
  case v1::SANDBOX_STATE_FAILED: return sandbox_state::failed;
  case v1::SANDBOX_STATE_REMOVED: return sandbox_state::removed;
  case v1::SANDBOX_STATE_RECOVERING: return sandbox_state::recovering;
  default: return sandbox_state::creating;
  }
}

operation_state to_public(v1::OperationState s) {
  switch (s) {
  case v1::OPERATION_STATE_PLANNED: return operation_state::planned;
  case v1::OPERATION_STATE_CONVERGED: return operation_state::converged;
  case v1::OPERATION_STATE_PARTLY: return operation_state::partly;
  case v1::OPERATION_STATE_FAILED: return operation_state::failed;
  case v1::OPERATION_STATE_CANCELLED: return operation_state::cancelled;
  default: return operation_state::running;
  }
}

memory_figures to_public(const v1::MemoryStatus& m) {
  return {m.boot_bytes(), m.plugged_bytes(), m.guest_bytes(),    m.target_bytes(),
          m.max_bytes(),  m.host_bytes(),    m.promised_bytes(), m.autosize().enabled()};
}

vcpu_figures to_public(const v1::VcpuStatus& v) {
  return {v.target(), v.online(), v.plugged(), v.max(), v.target_milli(), v.quota_milli()};
}

} // namespace

error make_public_error(std::string code, std::string text) {
  error e;
  e.code = std::move(code);
  e.text = std::move(text);
  return e;
}

error to_public(const v1::Error& e) {
  auto made = make_public_error(e.code(), e.text());
  made.retryable = e.retryable();
  made.console_tail.assign(e.console_tail().begin(), e.console_tail().end());
  return made;
}

sandbox_status to_public(const v1::SandboxStatus& s) {
  sandbox_status r;
  r.id = s.id();
  r.name = s.name();
  r.state = to_public(s.state());
  r.memory = to_public(s.memory());
  r.vcpus = to_public(s.vcpus());
  r.vmm_pid = s.vmm_pid();
  r.hypervisor = s.hypervisor();
  r.accelerator = s.accelerator();
  r.architecture = s.architecture();
  r.stop_reason = s.stop_reason();
  for (const auto& a : s.adaptations())
    r.adaptations.push_back({a.key(), a.asked(), a.used(), a.why(), a.where()});
  return r;
}

operation to_public(const v1::Operation& o) {
  operation r;
  r.id = o.id();
  r.sandbox_id = o.sandbox_id();
  r.state = to_public(o.state());
  r.memory_asked_bytes = o.memory_asked_bytes();
  r.memory_target_bytes = o.memory_target_bytes();
  r.memory = to_public(o.memory());
  r.vcpus = to_public(o.vcpus());
  r.why = o.why().empty() ? o.error().text() : o.why();
  for (const auto& step : o.plan().steps())
    r.plan.push_back(step.text());
  for (const auto& note : o.plan().notes())
    r.plan.push_back(note);
  return r;
}

event to_public(const v1::Event& e) {
  event r;
  r.seq = e.seq();
  r.unix_ms = e.unix_ms();
  r.type = e.type();
  r.sandbox_id = e.sandbox_id();
  r.sandbox_name = e.sandbox_name();
  r.text = e.text();
  r.lagged = e.lagged();
  return r;
}

std::vector<sandbox_status> to_public(const v1::SandboxList& l) {
  std::vector<sandbox_status> all;
  for (const auto& s : l.sandboxes())
    all.push_back(to_public(s));
  return all;
}

v1::CreateSandbox to_proto(const sandbox_options& o) {
  v1::CreateSandbox m;
  m.set_name(o.name);
  m.set_config_path(o.config_path);
  for (const auto& [key, value] : o.annotations)
    (*m.mutable_annotations())[key] = value;
  m.set_memory_bytes(o.memory_bytes);
  m.set_vcpus(o.vcpus);
  m.set_hypervisor(o.hypervisor);
  m.set_architecture(o.architecture);
  return m;
}

v1::ResizeSandbox to_proto(const std::string& sandbox, const resize_request& r) {
  v1::ResizeSandbox m;
  m.set_sandbox(sandbox);
  m.set_memory_bytes(r.memory_bytes);
  m.set_vcpus(r.vcpus);
  m.set_vcpus_milli(r.vcpus_milli);
  m.set_autosize(r.follow_load);
  m.set_dry_run(r.dry_run);
  return m;
}

v1::ExecRequest to_proto(const std::string& sandbox, const exec_request& r) {
  v1::ExecRequest m;
  m.set_sandbox(sandbox);
  for (const auto& a : r.argv)
    m.mutable_start()->add_argv(a);
  for (const auto& e : r.environment)
    m.mutable_start()->add_environment(e);
  m.mutable_start()->set_working_directory(r.working_directory);
  return m;
}

error check_text(std::string_view what, std::string_view text) {
  if (is_utf8(text))
    return {};
  return make_public_error("invalid_argument", std::string{what} + ": it is not UTF-8; encode it so");
}

error check_texts(const sandbox_options& o) {
  for (const auto& [what, text] : {std::pair<const char*, const std::string&>{"sandbox name", o.name},
                                   {"configuration path", o.config_path},
                                   {"hypervisor", o.hypervisor},
                                   {"architecture", o.architecture}})
    if (auto why = check_text(what, text); !why.code.empty())
      return why;
  for (const auto& [key, value] : o.annotations)
    for (const auto& text : {key, value})
      if (auto why = check_text("annotation", text); !why.code.empty())
        return why;
  return {};
}

error check_texts(const std::string& sandbox, const exec_request& r) {
  if (auto why = check_text("sandbox", sandbox); !why.code.empty())
    return why;
  if (auto why = check_text("working directory", r.working_directory); !why.code.empty())
    return why;
  for (const auto& a : r.argv)
    if (auto why = check_text("argument of exec", a); !why.code.empty())
      return why;
  for (const auto& e : r.environment)
    if (auto why = check_text("environment variable of exec", e); !why.code.empty())
      return why;
  return {};
}

} // namespace caisson::embedding
