#include "frontends/cli/show.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <utility>
#include <vector>

#include "frontends/cli/output.hpp"
#include "messages/validate.hpp"

namespace caisson::cli {
namespace {

// "SANDBOX_STATE_RUNNING" -> "running"
std::string lower_tail(const std::string& name, std::string_view prefix) {
  std::string out = name.starts_with(prefix) ? name.substr(prefix.size()) : name;
  for (auto& c : out)
    c = c == '_' ? '-' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return out;
}

std::string show_state(v1::OperationState s) {
  return lower_tail(v1::OperationState_Name(s), "OPERATION_STATE_");
}

std::string show_method(v1::MemoryMethod m) {
  return m == v1::MEMORY_METHOD_UNSPECIFIED ? "none" : lower_tail(v1::MemoryMethod_Name(m), "MEMORY_METHOD_");
}

std::uint64_t total(const v1::MemoryStatus& m) {
  return m.boot_bytes() + m.plugged_bytes();
}

std::string show_cpus(std::uint32_t milli) {
  if (milli % 1000 == 0)
    return std::to_string(milli / 1000);
  auto text = fmt::format("{}.{:03}", milli / 1000, milli % 1000);
  text.erase(text.find_last_not_of('0') + 1);
  return text;
}

std::string asked_cpus(const v1::Operation& o) {
  return show_cpus(o.vcpus_asked_milli() > 0 ? o.vcpus_asked_milli() : o.vcpus_asked() * 1000);
}

bool running(const v1::SandboxStatus& s) {
  return s.state() == v1::SANDBOX_STATE_RUNNING || s.state() == v1::SANDBOX_STATE_PAUSED;
}

} // namespace

std::string show_state(v1::SandboxState s) {
  return lower_tail(v1::SandboxState_Name(s), "SANDBOX_STATE_");
}

std::string show_time(std::int64_t unix_ms) {
  if (unix_ms <= 0)
    return "";
  auto seconds = static_cast<std::time_t>(unix_ms / 1000);
  std::tm local{};
  ::localtime_r(&seconds, &local);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &local);
  return text;
}

std::string show_status(const v1::SandboxStatus& s) {
  std::string out;
  auto line = [&](std::string_view name, const std::string& value) {
    if (!value.empty())
      out += fmt::format("{:<14}{}\n", name, value);
  };
  line("name", s.name());
  line("id", s.id());
  line("state", show_state(s.state()) + (s.stop_reason().empty() ? "" : ": " + escape_guest_text(s.stop_reason())));
  line("created", show_time(s.created_unix_ms()));
  line("hypervisor", s.hypervisor() + (s.vmm_version().empty() ? "" : ", " + s.vmm_version()) +
                         (s.architecture().empty() ? "" : ", " + s.architecture()));
  if (!s.accelerator().empty())
    line("accelerator", s.accelerator() + (s.accelerator_reason().empty() ? "" : ": " + s.accelerator_reason()));
  const auto& m = s.memory();
  line("memory", fmt::format("{} target; {} at boot + {} plugged ({})", show_bytes(m.target_bytes()),
                             show_bytes(m.boot_bytes()), show_bytes(m.plugged_bytes()), show_method(m.method())));
  line("", fmt::format("guest says {}, of which {} available; at most {}", show_bytes(m.guest_bytes()),
                       show_bytes(m.guest_available_bytes()), show_bytes(m.max_bytes())));
  if (m.workload_bytes() > 0)
    line("", "its workload holds " + show_bytes(m.workload_bytes()) +
                 (m.workload_max_bytes() > 0 ? " of " + show_bytes(m.workload_max_bytes()) : ""));
  if (m.slots_total() > 0)
    line("", fmt::format("{} of {} slots used", m.slots_used(), m.slots_total()));
  if (m.host_bytes() > 0)
    line("", "the host pays " + show_bytes(m.host_bytes()) +
                 (m.promised_bytes() > 0 ? " of " + show_bytes(m.promised_bytes()) + " that are promised" : ""));
  else if (m.promised_bytes() > 0)
    line("", "the host has promised " + show_bytes(m.promised_bytes()));
  if (m.autosize().enabled())
    line("", fmt::format("follows the load from {} to {}, with {} available", show_bytes(m.autosize().floor_bytes()),
                         show_bytes(m.autosize().ceiling_bytes()), show_bytes(m.autosize().headroom_bytes())));
  const auto& v = s.vcpus();
  line("processors",
       fmt::format("{} target, {} online, {} plugged, at most {}",
                   v.target_milli() > 0 ? show_cpus(v.target_milli()) : std::to_string(v.target()), v.online(),
                   v.plugged(), v.max()));
  if (v.quota_milli() > 0)
    line("", fmt::format("the workload may use {} of them", show_cpus(v.quota_milli())));
  if (running(s)) {
    line("guest", s.agent_connected() ? "kernel " + escape_guest_text(s.kernel_release(), 80) + ", agent " +
                                            escape_guest_text(s.agent_version(), 40)
                                      : std::string{"its agent is not connected"});
    line("vmm pid", std::to_string(s.vmm_pid()));
    if (s.boot_ms() > 0)
      line("booted in", fmt::format("{:.1f} s", static_cast<double>(s.boot_ms()) / 1000));
  }
  line("configuration", s.config_path());
  for (const auto& a : s.adaptations())
    line("adapted", fmt::format("{}: {} asked, {} used: {}", a.key(), a.asked(), a.used(), a.why()));
  for (const auto& w : s.warnings())
    line("warning", escape_guest_text(w));
  if (s.has_operation() && !s.operation().id().empty())
    line("operation", show_operation_line(s.operation()));
  return out;
}

std::string show_engine(const v1::EngineStatus& e) {
  const auto& b = e.budget();
  auto out = fmt::format("{:<14}{}, pid {}, since {}\n{:<14}{}\n{:<14}{}\n", "engine", e.version(), e.pid(),
                         show_time(e.started_unix_ms()), "state", e.state_directory(), "sandboxes", e.sandboxes());
  if (!e.has_budget())
    return out;
  out += fmt::format("{:<14}{} of {} available, {} kept back{}\n", "host memory", show_bytes(b.available_bytes()),
                     show_bytes(b.total_bytes()), show_bytes(b.reserve_bytes()),
                     b.overcommit_percent() == 100
                         ? ""
                         : fmt::format(", overcommit {}.{:02}", b.overcommit_percent() / 100, b.overcommit_percent() % 100));
  out += fmt::format("{:<14}{} promised to sandboxes, {} of it not yet taken\n", "", show_bytes(b.promised_bytes()),
                     show_bytes(b.owed_bytes()));
  return out;
}

std::string show_list(const v1::SandboxList& l) {
  std::vector<std::vector<std::string>> rows{{"NAME", "ID", "STATE", "MEMORY", "GUEST", "CPUS", "VMM", "CREATED"}};
  for (const auto& s : l.sandboxes())
    rows.push_back(
        {s.name(), s.id(), show_state(s.state()), show_bytes(total(s.memory())),
         running(s) ? show_bytes(s.memory().guest_bytes()) : "-", running(s) ? std::to_string(s.vcpus().online()) : "-",
         s.hypervisor() + (s.accelerator().empty() ? "" : "/" + s.accelerator()), show_time(s.created_unix_ms())});
  return table(rows);
}

std::string show_operation(const v1::Operation& o) {
  std::string out;
  if (o.memory_asked_bytes() > 0) {
    const auto& m = o.memory();
    out += fmt::format("memory      asked {}, boot {} + plugged {} = {}, guest {}\n",
                       show_bytes(o.memory_asked_bytes()), show_bytes(m.boot_bytes()), show_bytes(m.plugged_bytes()),
                       show_bytes(total(m)), show_bytes(m.guest_bytes()));
    if (m.host_bytes() > 0)
      out += fmt::format("host        pays {} of {} promised\n", show_bytes(m.host_bytes()), show_bytes(m.promised_bytes()));
  }
  if (!o.cause().empty())
    out += "because     " + escape_guest_text(o.cause()) + "\n";
  if (o.vcpus_asked() > 0)
    out += fmt::format("processors  asked {}, plugged {}, online {}{}\n", asked_cpus(o), o.vcpus().plugged(),
                       o.vcpus().online(),
                       o.vcpus().quota_milli() > 0 ? ", quota " + show_cpus(o.vcpus().quota_milli()) : "");
  out += show_state(o.state());
  if (!o.why().empty())
    out += ": " + escape_guest_text(o.why());
  for (const auto& note : o.plan().notes())
    if (note != o.why())
      out += "\nnote: " + note;
  return out + "\n";
}

std::string show_plan(const v1::Operation& o) {
  std::string out;
  const auto& p = o.plan();
  if (o.memory_asked_bytes() > 0) {
    const auto target = p.memory_target_bytes() > 0 ? p.memory_target_bytes() : o.memory_target_bytes();
    auto reached = total(o.memory());
    for (const auto& step : p.steps())
      reached += step.grow() ? step.bytes() : 0 - step.bytes();
    out += fmt::format("memory      asked {}, would become {}{}\n", show_bytes(o.memory_asked_bytes()), show_bytes(reached),
                       reached == target ? "" : " of " + show_bytes(target));
  }
  if (o.vcpus_asked() > 0)
    out += fmt::format("processors  asked {}, would become {}{}\n", asked_cpus(o),
                       p.vcpus_target() > 0 ? p.vcpus_target() : o.vcpus_asked(),
                       o.vcpus_asked_milli() > 0 ? " and a quota of " + show_cpus(o.vcpus_asked_milli()) : "");
  int n = 0;
  for (const auto& step : p.steps())
    out += fmt::format("{:>3}. {}\n", ++n,
                       step.text().empty() ? fmt::format("{} {} by {}", step.grow() ? "plug" : "unplug",
                                                         show_bytes(step.bytes()), show_method(step.method()))
                                           : step.text());
  for (const auto& note : p.notes())
    out += "note: " + note + "\n";
  if (!o.why().empty())
    out += "note: " + o.why() + "\n";
  return out + "nothing was changed\n";
}

std::string show_operation_line(const v1::Operation& o) {
  std::string out = o.id() + " " + show_state(o.state());
  if (o.memory_asked_bytes() > 0)
    out += fmt::format(", memory {} of {}, guest {}", show_bytes(total(o.memory())),
                       show_bytes(o.memory_target_bytes() > 0 ? o.memory_target_bytes() : o.memory_asked_bytes()),
                       show_bytes(o.memory().guest_bytes()));
  if (o.vcpus_asked() > 0)
    out += fmt::format(", processors {} of {}", o.vcpus().online(), asked_cpus(o));
  if (!o.why().empty())
    out += ": " + escape_guest_text(o.why(), 300);
  return out;
}

std::string show_capabilities(const v1::Capabilities& p, const std::string& indent) {
  auto yes = [](bool can, const std::string& why_not) {
    return can ? std::string{"yes"} : "no" + (why_not.empty() ? "" : ": " + why_not);
  };
  auto with = [](const std::string& text, const std::string& more) { return more.empty() ? text : text + "; " + more; };
  const auto dimm = fmt::format("yes, blocks of {}, at most {}", show_bytes(p.dimm_block_bytes()), p.dimm_max_slots());
  const auto devices = std::string{p.disks() ? "disks " : ""} + (p.nets() ? "nets " : "") + (p.shares() ? "shares " : "");
  std::vector<std::pair<std::string, std::string>> rows{
      {"hypervisor", p.backend() + (p.vmm_version().empty() ? "" : ", " + p.vmm_version()) + ", " + p.architecture()},
      {"accelerator", p.accelerator() + (p.accelerator_reason().empty() ? "" : ": " + p.accelerator_reason())},
      {"memory by DIMM", p.dimm() ? (p.dimm_unplug() ? dimm
                                                     : with(dimm + "; never taken out again", p.dimm_why_not()))
                                  : yes(false, p.dimm_why_not())},
      {"memory by virtio-mem",
       p.virtio_mem() ? fmt::format("yes, granules of {}", show_bytes(p.virtio_mem_granule_bytes()))
                      : yes(false, p.virtio_mem_why_not())},
      {"processors", with(with(std::string{p.vcpu_plug() ? "plugged" : "fixed"} +
                                   (p.vcpu_unplug() ? " and unplugged" : "") + " while it runs",
                               p.vcpu_plug_why_not()),
                          p.vcpu_unplug_why_not())},
      {"devices", devices.empty() ? yes(false, p.devices_why_not()) : with(devices.substr(0, devices.size() - 1), p.devices_why_not())},
      {"free page reporting", yes(p.free_page_reporting(), {})}};
  std::string out;
  for (const auto& [name, text] : rows)
    out += indent + name + std::string(22 - std::min<std::size_t>(name.size(), 20), ' ') + text + "\n";
  return out;
}

std::string show_event(const v1::Event& e) {
  std::string out = fmt::format("{:>6}  {}  {:<24}", e.seq(), show_time(e.unix_ms()), e.type());
  if (!e.sandbox_name().empty() || !e.sandbox_id().empty())
    out += " " + (e.sandbox_name().empty() ? e.sandbox_id() : e.sandbox_name());
  if (e.has_operation())
    out += "  " + show_operation_line(e.operation());
  if (!e.text().empty() && !(e.has_operation() && e.text() == e.operation().why()))
    out += "  " + escape_guest_text(e.text(), 1000);
  if (e.lagged() > 0)
    out += fmt::format("  {} events were dropped; --from {} gives them", e.lagged(),
                       e.seq() > e.lagged() ? e.seq() - e.lagged() : 1);
  return out;
}

} // namespace caisson::cli
