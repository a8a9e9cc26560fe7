#pragma once

namespace CLI {
class App;
}

namespace caisson::cli {

/// `caisson config check|show|explain|diff|schema|migrate`. They read files here, without an engine process.
void add_config_commands(CLI::App& app);

} // namespace caisson::cli
