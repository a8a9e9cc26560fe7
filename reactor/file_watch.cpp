#include "reactor/file_watch.hpp"

#include <sys/inotify.h>
#include <unistd.h>

#include <chrono>

#include "reactor/core.hpp"

namespace caisson::reactor {
namespace {

constexpr std::uint32_t interesting =
    IN_CLOSE_WRITE | IN_MOVED_TO | IN_MOVED_FROM | IN_CREATE | IN_DELETE | IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF;

} // namespace

class file_watch_state final : public open_thing {
public:
  file_watch_state(std::shared_ptr<core> on, std::function<void()> changed, watch_settings settings)
      : core_{std::move(on)}, stream_{core_->io}, timer_{core_->io}, changed_{std::move(changed)}, settings_{settings} {}

  void begin(const std::vector<std::string>& directories) {
    int fd = ::inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    if (fd < 0)
      return;
    for (const auto& directory : directories)
      ::inotify_add_watch(fd, directory.c_str(), interesting | IN_ONLYDIR | (settings_.writes ? IN_MODIFY : 0u));
    stream_.assign(fd);
    core_->enlist(shared_from_this());
    read();
  }

  void end() override {
    changed_ = {};
    boost::system::error_code ignored;
    stream_.close(ignored);
    timer_.cancel(ignored);
    core_->dismiss(shared_from_this());
  }

  static void post_end(const std::shared_ptr<file_watch_state>& state) {
    state->core_->post([state] { state->end(); });
  }

private:
  std::shared_ptr<file_watch_state> self() { return std::static_pointer_cast<file_watch_state>(shared_from_this()); }

  void read() {
    stream_.async_read_some(asio::buffer(buffer_), [me = self()](boost::system::error_code why, std::size_t) {
      if (why || !me->changed_)
        return;
      if (!me->settings_.writes || !me->armed_)
        me->arm();
      me->read();
    });
  }

  void arm() {
    armed_ = true;
    timer_.expires_after(settings_.quiet);
    timer_.async_wait([me = self()](boost::system::error_code late) {
      if (late || !me->changed_)
        return;
      me->armed_ = false;
      me->changed_();
    });
  }

  std::shared_ptr<core> core_;
  asio::posix::stream_descriptor stream_;
  asio::steady_timer timer_;
  std::function<void()> changed_;
  const watch_settings settings_;
  bool armed_ = false;
  std::array<std::byte, 4096> buffer_;
};

file_watch::file_watch(reactor& on, std::vector<std::string> directories, std::function<void()> changed,
                       watch_settings settings)
    : state_{std::make_shared<file_watch_state>(on.shared_core(), std::move(changed), settings)} {
  on.post([state = state_, directories = std::move(directories)] { state->begin(directories); });
}

file_watch::~file_watch() {
  file_watch_state::post_end(state_);
}

} // namespace caisson::reactor
