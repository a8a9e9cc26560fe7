// firmware: what firmware this host has for VMs, whether an image fits, and the flash images that ARM64 wants. Needs no
// engine.

#include <sys/utsname.h>

#include <CLI/App.hpp>
#include <nlohmann/json.hpp>

#include <filesystem>

#include "backends/firmware.hpp"
#include "frontends/cli/command_line.hpp"
#include "frontends/cli/output.hpp"
#include "messages/validate.hpp"

namespace caisson::cli {
namespace {

using nlohmann::json;

struct firmware_options {
  std::string architecture, directory, source, code = std::string{firmware::automatic}, variables;
  bool secure_boot = false;
};

std::string this_machine() {
  utsname u{};
  ::uname(&u);
  return u.machine;
}

firmware::wish wish_of(const firmware_options& o) {
  if (o.architecture != "x86_64" && o.architecture != "aarch64")
    fail("invalid_argument",
         "--arch: \"" + escape_guest_text(o.architecture, 60) + "\" is none; it is x86_64 or aarch64");
  return {o.architecture, firmware::machine_of(o.architecture), o.secure_boot};
}

std::string absolute(const std::string& path) {
  return path.empty() || path == firmware::automatic ? path
                                                     : std::filesystem::absolute(path).lexically_normal().string();
}

std::string notes_of(const firmware::descriptor& d) {
  std::error_code error;
  std::string out;
  auto add = [&](const std::string& text) { out += (out.empty() ? "" : ", ") + text; };
  if (d.secure_boot)
    add("secure boot");
  if (d.enrolled_keys)
    add("enrolled keys");
  if (d.device != "flash")
    add(d.device);
  for (const auto& path : {d.code, d.variables})
    if (!path.empty() && !std::filesystem::is_regular_file(path, error))
      add(path + " is not there");
  return out;
}

int list(const command_context& c, const firmware_options& o) {
  if (!o.architecture.empty())
    wish_of(o);
  auto known = firmware::read_descriptors();
  auto items = json::array();
  std::vector<std::vector<std::string>> rows{{"ARCH", "CODE", "VARIABLES", "NOTES"}};
  for (const auto& d : known.found) {
    for (const auto& target : d.targets) {
      if (!o.architecture.empty() && target.architecture != o.architecture)
        continue;
      auto chosen = firmware::choose(known, {target.architecture, firmware::machine_of(target.architecture)});
      bool automatic = chosen && chosen->path == d.path;
      auto notes = notes_of(d);
      items.push_back({{"architecture", target.architecture},
                       {"code", d.code},
                       {"variables", d.variables},
                       {"auto", automatic},
                       {"secure_boot", d.secure_boot},
                       {"enrolled_keys", d.enrolled_keys},
                       {"descriptor", d.path},
                       {"description", d.description},
                       {"machines", target.machines}});
      rows.push_back({target.architecture, escape_guest_text(d.code), escape_guest_text(d.variables),
                      (automatic ? std::string{"taken by \"auto\""} + (notes.empty() ? "" : ", ") : "") +
                          escape_guest_text(notes)});
    }
  }
  for (const auto& each : known.unusable)
    print_notice(escape_guest_text(each), c.global.json);
  if (c.global.json)
    write_all(1, json{{"firmware", items}, {"unusable", known.unusable}}.dump(2) + "\n");
  else if (rows.size() > 1)
    write_all(1, table(rows));
  else
    write_all(1, "no firmware is described in /usr/share/qemu/firmware or /etc/qemu/firmware; Debian's packages are "
                 "qemu-efi-aarch64 (ARM64) and ovmf (x86_64)\n");
  return 0;
}

void show_images(const command_context& c, const firmware::images& images, const std::string& first) {
  if (c.global.json) {
    write_all(1,
              json{{"firmware", images.code}, {"firmware_volume", images.variables}, {"flash", images.flash}}.dump(2) +
                  "\n");
    return;
  }
  write_all(1, first + "firmware = \"" + escape_guest_text(images.code) + "\"\n");
  if (!images.variables.empty())
    write_all(1, "firmware_volume = \"" + escape_guest_text(images.variables) + "\"\n");
}

template <class F> firmware::images mended(F&& todo) {
  try {
    return todo();
  } catch (const firmware::error& e) {
    fail(e.code, e.what());
  }
}

int check(const command_context& c, const firmware_options& o) {
  auto asked = wish_of(o);
  if (o.code.empty())
    fail("invalid_argument", "FIRMWARE is empty, which means none, and there is nothing to check; name an image, or "
                             "leave it out for what \"auto\" takes");
  auto images = mended(
      [&] { return firmware::settle(asked, absolute(o.code), absolute(o.variables), firmware::read_descriptors()); });
  show_images(c, images, "# fits " + asked.architecture + " machines (" + asked.machine + ")\n");
  return 0;
}

int prepare(const command_context& c, const firmware_options& o) {
  auto asked = wish_of(o);
  auto images = mended([&] {
    return firmware::prepare(asked, absolute(o.source), absolute(o.directory), firmware::read_descriptors());
  });
  show_images(c, images, "");
  return 0;
}

} // namespace

void add_firmware_commands(CLI::App& app, command_context& c) {
  auto* group = app.add_subcommand("firmware", "Show, check and prepare firmware images for VMs");
  group->require_subcommand(1);
  auto add = [&](const char* name, const char* about, int (*verb)(const command_context&, const firmware_options&)) {
    auto o = std::make_shared<firmware_options>();
    auto* made = group->add_subcommand(name, about);
    made->callback([&c, o, verb] { c.action = [&c, o, verb] { return verb(c, *o); }; });
    return std::pair{made, o};
  };
  auto [list_verb, list_of] = add("list", "List what this host's firmware descriptors name", list);
  list_verb->add_option("--arch", list_of->architecture, "x86_64 or aarch64; none: all")->type_name("ARCH");

  auto [check_verb, check_of] =
      add("check", "Tell whether images fit a VM; without FIRMWARE, what \"auto\" takes", check);
  check_of->architecture = this_machine();
  check_verb->add_option("--arch", check_of->architecture, "x86_64 or aarch64; none: this host's")->type_name("ARCH");
  check_verb->add_flag("--secure-boot", check_of->secure_boot,
                       "\"auto\" takes firmware with secure boot and enrolled keys");
  check_verb->add_option("FIRMWARE", check_of->code, "The code, as in the key `firmware`");
  check_verb->add_option("VARIABLES", check_of->variables, "Template of the variable store, as in `firmware_volume`");

  auto [prepare_verb, prepare_of] =
      add("prepare", "Make the pair of flash images that ARM64 wants from an installed EDK2 build", prepare);
  prepare_of->architecture = "aarch64";
  prepare_verb->add_option("--arch", prepare_of->architecture, "aarch64")->type_name("ARCH");
  prepare_verb->add_option("--dir", prepare_of->directory, "Where code.fd and variables.fd are made")
      ->type_name("DIR")
      ->required();
  prepare_verb->add_option("--from", prepare_of->source, "The EDK2 build; none: the package's")->type_name("FILE");
}

} // namespace caisson::cli
