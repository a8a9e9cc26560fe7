#include "engine/config_facts.hpp"

#include "backends/backend.hpp"
#include "config/resolve.hpp"

namespace caisson::engine {

config::host_facts config_facts() {
  auto facts = config::read_host_facts();
  for (const auto& line : backends::registry())
    facts.backends.push_back({std::string{line.name}, {line.architectures.begin(), line.architectures.end()}});
  return facts;
}

} // namespace caisson::engine
