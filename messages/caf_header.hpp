#pragma once
// The precompiled header of everything that holds actors.
#include <caf/all.hpp>
#include <google/protobuf/message.h>
#include <google/protobuf/util/message_differencer.h>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>
