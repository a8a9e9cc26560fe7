#pragma once

/// The border: every message that comes from outside is checked here, once, before an actor sees it. Decisions behind it
/// may rely on what is checked.

#include <caf/error.hpp>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "messages/error.hpp"
#include "messages/sandbox.pb.h"

namespace caisson {

/// Largest size that is believed at all (16 EiB wraps; a petabyte is a typing error). 256 TiB.
inline constexpr std::uint64_t absurd_bytes = std::uint64_t{1} << 48;

/// An empty error means: good.
caf::error validate(const v1::CreateSandbox& m);
caf::error validate(const v1::ResizeSandbox& m);
caf::error validate(const v1::StopSandbox& m);
caf::error validate_name(std::string_view name, std::string_view what = "sandbox name");
caf::error validate_selector(std::string_view id_or_name);

/// A size as people write it: digits and an optional K, M, G, T (powers of 1024; "Ki", "KiB", "KB" mean the same),
/// e.g. "1536M", "2GiB". A bare number is bytes. Fractions ("1.5G") are taken where they give whole bytes.
/// nullopt and `why` where it is not a size.
std::optional<std::uint64_t> parse_size_bytes(std::string_view text, std::string& why);

/// "3 GiB", "1.5 GiB", "1536 MiB": exact where it can be, else in MiB with one digit.
std::string show_bytes(std::uint64_t bytes);

/// Guest text made safe for a terminal, JSON and logs: printable ASCII and valid UTF-8 letters stay, everything else
/// becomes \xNN; at most `limit` bytes come out.
std::string escape_guest_text(std::string_view text, std::size_t limit = 4096);

} // namespace caisson
