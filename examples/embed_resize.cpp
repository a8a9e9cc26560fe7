// A sandbox kept by this program: made, asked, grown, asked again, removed.
//   embed_resize CONFIGURATION.TOML STATE_DIRECTORY [HYPERVISOR]
#include <caisson/engine.hpp>

#include <cstdlib>
#include <iostream>

int main(int argc, char** argv) try {
  if (argc < 3)
    return std::cerr << "usage: embed_resize CONFIGURATION.TOML STATE_DIRECTORY [HYPERVISOR]\n", 2;
  caisson::engine_options where;
  where.state_directory = argv[2];
  auto engine = caisson::engine::open(where).value();
  auto heard = engine->subscribe(0, [](const caisson::event& e) { std::clog << e.seq << ' ' << e.type << '\n'; });

  caisson::sandbox_options wanted;
  wanted.config_path = argv[1];
  wanted.hypervisor = argc > 3 ? argv[3] : "";
  auto sandbox = engine->create(wanted).value();
  std::cout << sandbox.name << ": " << (sandbox.memory.guest_bytes >> 20) << " MiB\n";

  caisson::resize_request more;
  more.memory_bytes = sandbox.memory.boot_bytes + (512u << 20);
  auto resized = engine->resize(sandbox.id, more).value();
  std::cout << to_string(resized.state) << ": " << (resized.memory.guest_bytes >> 20) << " MiB " << resized.why << '\n';

  auto seen = engine->exec(sandbox.id, {.argv = {"cat", "/proc/meminfo"}}).value();
  std::cout << seen.out.substr(0, seen.out.find('\n')) << '\n';
  engine->remove(sandbox.id, true).value();
  return resized.state == caisson::operation_state::converged ? EXIT_SUCCESS : EXIT_FAILURE;
} catch (const std::exception& e) {
  std::cerr << e.what() << '\n';
  return EXIT_FAILURE;
}
