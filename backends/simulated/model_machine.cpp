#include "backends/simulated/model_machine.hpp"

#include <algorithm>
#include <utility>

namespace caisson::backends::simulated {
namespace {

constexpr std::uint64_t mib = 1u << 20;
constexpr std::uint64_t page_bytes_a_struct = 64; // the memory map takes 1/64 of what it describes
constexpr std::uint64_t programs_bytes = 24 * mib;
constexpr std::uint64_t hotplug_base = std::uint64_t{1} << 32;

std::string show(std::uint64_t bytes) {
  return bytes % mib == 0 ? std::to_string(bytes / mib) + " MiB" : std::to_string(bytes) + " bytes";
}

} // namespace

model_machine::model_machine(machine_shape shape, guest_habits habits, timeline& time, std::uint64_t seed)
    : shape_{shape}, habits_{habits}, time_{time}, dice_{seed}, vcpus_plugged_{shape.boot_vcpus},
      vcpus_present_{shape.boot_vcpus}, vcpus_online_{shape.boot_vcpus} {}

timeline::ticket model_machine::after(timeline::time delay, timeline::work what) {
  return time_.after(delay, [weak = weak_from_this(), what = std::move(what)]() mutable {
    const auto self = weak.lock();
    if (!self || self->stopped_)
      return;
    if (self->paused_)
      self->frozen_.push_back(std::move(what));
    else
      what();
  });
}

void model_machine::pause() {
  paused_ = true;
}

void model_machine::resume() {
  paused_ = false;
  for (auto& what : std::exchange(frozen_, {}))
    after({}, std::move(what));
}

void model_machine::stop() {
  stopped_ = true;
  frozen_.clear();
}

void model_machine::guest_is_up() {
  up_ = true;
  for (const auto& d : dimms_)
    after(habits_.notice_ms.draw(dice_), [this, id = d.id] { see_dimm(id); });
  follow_virtio_mem();
  if (vcpus_present_ != vcpus_plugged_)
    after(habits_.notice_ms.draw(dice_), [this] { see_cpus(); });
}

void model_machine::tell(machine_news::kind what, std::string id, std::uint64_t bytes) {
  if (on_news)
    on_news({what, std::move(id), bytes});
}

void model_machine::changed() {
  if (on_guest_change)
    on_guest_change();
}

machine_dimm* model_machine::find(const std::string& id) {
  const auto it = std::find_if(dimms_.begin(), dimms_.end(), [&](const auto& d) { return d.id == id; });
  return it == dimms_.end() ? nullptr : &*it;
}

// ---- memory: the VMM's side ----

std::uint64_t model_machine::plugged_bytes() const noexcept {
  auto sum = virtio_size_;
  for (const auto& d : dimms_)
    sum += d.size_bytes;
  return sum;
}

std::string model_machine::plug_dimm(const std::string& id, std::uint64_t size_bytes) {
  if (find(id))
    return {};
  if (size_bytes == 0 || size_bytes % shape_.block_bytes != 0)
    return "a DIMM of " + show(size_bytes) + " is not a multiple of " + show(shape_.block_bytes);
  if (dimms_.size() >= shape_.dimm_slots)
    return "all " + std::to_string(shape_.dimm_slots) + " memory slots are in use";
  if (size_bytes > shape_.max_bytes - std::min(shape_.max_bytes, shape_.boot_bytes + plugged_bytes()))
    return "a DIMM of " + show(size_bytes) + " on top of " + show(shape_.boot_bytes + plugged_bytes()) +
           " is more than the machine's maximum of " + show(shape_.max_bytes);
  auto address = hotplug_base;
  for (bool moved = true; moved;) {
    moved = false;
    for (const auto& d : dimms_)
      if (address < d.address + d.size_bytes && d.address < address + size_bytes) {
        address = d.address + d.size_bytes;
        moved = true;
      }
  }
  dimms_.push_back({id, size_bytes, address});
  if (up_)
    after(habits_.notice_ms.draw(dice_), [this, id] { see_dimm(id); });
  return {};
}

std::string model_machine::unplug_dimm(const std::string& id) {
  auto* d = find(id);
  if (!d || d->leaving)
    return {};
  d->leaving = true;
  after(habits_.leave_ms.draw(dice_), [this, id] {
    auto* leaving = find(id);
    if (!leaving)
      return;
    leaving->leaving = false;
    if (!up_ || dice_.chance(habits_.dimm_ignored))
      return;
    if (!leaving->kept_offline && dice_.chance(habits_.dimm_refused)) {
      tell(machine_news::kind::device_refused, id);
      return;
    }
    std::erase_if(dimms_, [&](const auto& x) { return x.id == id; });
    tell(machine_news::kind::device_removed, id);
    changed();
  });
  return {};
}

std::string model_machine::request_virtio_mem(std::uint64_t bytes) {
  if (bytes % shape_.granule_bytes != 0)
    return "a virtio-mem size of " + show(bytes) + " is not a multiple of " + show(shape_.granule_bytes);
  if (bytes > shape_.max_bytes - std::min(shape_.max_bytes, shape_.boot_bytes))
    return "a virtio-mem size of " + show(bytes) + " on top of " + show(shape_.boot_bytes) +
           " is more than the machine's maximum of " + show(shape_.max_bytes);
  virtio_requested_ = bytes;
  follow_virtio_mem();
  return {};
}

// ---- devices ----

const machine_device* model_machine::device(const std::string& id) const noexcept {
  const auto it = std::find_if(devices_.begin(), devices_.end(), [&](const auto& d) { return d.id == id; });
  return it == devices_.end() ? nullptr : &*it;
}

void model_machine::attach_device(machine_device device) {
  devices_.push_back(std::move(device));
}

void model_machine::detach_device(const std::string& id) {
  const auto it = std::find_if(devices_.begin(), devices_.end(), [&](const auto& d) { return d.id == id; });
  if (it == devices_.end() || it->leaving)
    return;
  it->leaving = true;
  after(habits_.leave_ms.draw(dice_), [this, id] {
    if (std::erase_if(devices_, [&](const auto& d) { return d.id == id && d.leaving; }) > 0)
      tell(machine_news::kind::device_removed, id);
  });
}

// ---- memory: the guest's side ----

std::uint64_t model_machine::boot_mem_total_bytes() const noexcept {
  // What the kernel itself takes at boot: its image and the memory map of the boot memory.
  const auto kernel = 32 * mib + shape_.boot_bytes / page_bytes_a_struct;
  return shape_.boot_bytes > 2 * kernel ? shape_.boot_bytes - kernel : shape_.boot_bytes / 2;
}

std::uint64_t model_machine::online_plugged_bytes() const noexcept {
  auto sum = virtio_size_;
  for (const auto& d : dimms_)
    sum += d.online_bytes;
  return sum;
}

std::uint64_t model_machine::mem_total_bytes() const noexcept {
  return boot_mem_total_bytes() + online_plugged_bytes();
}

std::uint64_t model_machine::mem_available_bytes() const noexcept {
  auto seen = virtio_size_;
  for (const auto& d : dimms_)
    seen += d.seen ? d.size_bytes : 0;
  const auto used =
      std::min(programs_bytes, boot_mem_total_bytes() / 2) + seen / page_bytes_a_struct + workload_bytes_;
  const auto total = mem_total_bytes();
  return total > used ? total - used : 0;
}

std::uint32_t model_machine::online_blocks() const noexcept {
  return static_cast<std::uint32_t>((shape_.boot_bytes + online_plugged_bytes()) / shape_.block_bytes);
}

std::uint32_t model_machine::offline_blocks() const noexcept {
  std::uint64_t sum = 0;
  for (const auto& d : dimms_)
    sum += d.seen ? d.size_bytes - d.online_bytes : 0;
  return static_cast<std::uint32_t>(sum / shape_.block_bytes);
}

std::uint64_t model_machine::room_to_online(std::uint64_t wanted) const noexcept {
  const auto online = online_plugged_bytes();
  return online >= habits_.online_at_most_bytes ? 0 : std::min(wanted, habits_.online_at_most_bytes - online);
}

void model_machine::see_dimm(const std::string& id) {
  auto* d = find(id);
  // Without room for its memory map the kernel does not take it; it stays plugged and unseen.
  if (!d || d->seen || d->size_bytes / page_bytes_a_struct > mem_available_bytes())
    return;
  d->seen = true;
  changed();
  after(habits_.online_ms.draw(dice_), [this, id] { online_dimm(id); });
}

void model_machine::online_dimm(const std::string& id) {
  auto* d = find(id);
  if (!d || d->kept_offline)
    return;
  const auto room = room_to_online(d->size_bytes - d->online_bytes);
  d->online_bytes += room - room % shape_.block_bytes;
  changed();
}

void model_machine::follow_virtio_mem() {
  if (!up_ || virtio_moving_ || virtio_size_ == virtio_requested_)
    return;
  virtio_moving_ = true;
  after(habits_.notice_ms.draw(dice_), [this] { move_virtio_mem(); });
}

void model_machine::move_virtio_mem() {
  const auto granule = shape_.granule_bytes;
  const auto step_toward = [&](std::uint64_t far) {
    return std::min(far, std::max(shape_.block_bytes, far / 4 - far / 4 % granule));
  };
  auto size = virtio_size_;
  if (virtio_requested_ > size) {
    auto step = step_toward(virtio_requested_ - size);
    const auto map_room = mem_available_bytes() * page_bytes_a_struct;
    step = room_to_online(std::min(step, map_room));
    size += step - step % granule;
  } else if (virtio_requested_ < size) {
    const auto floor =
        std::max(virtio_requested_, habits_.virtio_mem_floor_bytes - habits_.virtio_mem_floor_bytes % granule);
    if (floor < size)
      size -= step_toward(size - floor);
  }
  virtio_moving_ = false;
  if (size == virtio_size_)
    return; // it goes no further; the next request tries again
  virtio_size_ = size;
  tell(machine_news::kind::memory_size, {}, size);
  changed();
  if (virtio_size_ != virtio_requested_ && !stopped_) {
    virtio_moving_ = true;
    after(habits_.online_ms.draw(dice_), [this] { move_virtio_mem(); });
  }
}

// ---- processors ----

std::string model_machine::set_vcpus(std::uint32_t count) {
  if (count == 0 || count > shape_.max_vcpus)
    return std::to_string(count) + " vCPUs are not between 1 and the machine's maximum of " +
           std::to_string(shape_.max_vcpus);
  if (count < vcpus_online_)
    return std::to_string(vcpus_online_) +
           " vCPUs are online in the guest: take them offline before unplugging down to " + std::to_string(count);
  if (count < vcpus_plugged_) {
    vcpus_plugged_ = count;
    vcpus_present_ = std::min(vcpus_present_, count);
    changed();
  } else if (count > vcpus_plugged_) {
    vcpus_plugged_ = count;
    if (up_)
      after(habits_.notice_ms.draw(dice_), [this] { see_cpus(); });
  }
  return {};
}

void model_machine::see_cpus() {
  vcpus_present_ = vcpus_plugged_;
  changed();
}

std::uint32_t model_machine::set_online_cpus(std::uint32_t count) {
  const auto reachable = std::min({count, vcpus_present_, std::max(habits_.online_at_most_cpus, shape_.boot_vcpus)});
  vcpus_online_ = count < vcpus_online_ ? std::max(count, 1u) : std::max(vcpus_online_, reachable);
  return vcpus_online_;
}

// ---- the end ----

void model_machine::power_off() {
  after(habits_.power_off_ms.draw(dice_), [this] { tell(machine_news::kind::guest_stopped); });
}

void model_machine::panic() {
  up_ = false;
  tell(machine_news::kind::guest_panicked);
}

} // namespace caisson::backends::simulated
