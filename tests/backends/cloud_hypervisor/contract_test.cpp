// Our requests and our own schema against the VMM's OpenAPI documents, one a version, where CAISSON_CH_OPENAPI names their
// directory. Unknown keys are forbidden here: the VMM passes over them in silence, so that a typing error would go unseen.

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>
#include <set>

#include "backends/cloud-hypervisor/http_reply.hpp"
#include "backends/cloud-hypervisor/request_schema.hpp"
#include "tests/backends/cloud_hypervisor/any_request.hpp"

namespace caisson::cloud_hypervisor {
namespace {

using nlohmann::json;
using namespace testing;

// Statuses that come although no document has them (and 405 never comes although some do).
const std::map<std::string, std::set<int>> beside_the_document{
    {"vmm.shutdown", {200, 500}}, {"vm.info", {500}},       {"vm.counters", {500}},     {"vm.create", {400, 500}},
    {"vm.delete", {500}},         {"vm.boot", {400, 409, 500}}, {"vm.pause", {500}},    {"vm.resume", {500}},
    {"vm.shutdown", {500}},       {"vm.power-button", {500}},   {"vm.resize", {500}},   {"vm.add-disk", {400, 404, 409, 500}},
    {"vm.add-net", {400, 404, 409, 500}}, {"vm.add-fs", {400, 404, 409, 500}}, {"vm.remove-device", {500}}, {"vmm.ping", {500}}};

struct document {
  std::string name;
  json all;

  // References followed.
  const json& at(const json& schema) const {
    auto ref = schema.find("$ref");
    if (ref == schema.end())
      return schema;
    return at(all.at(json::json_pointer{ref->get<std::string>().substr(1)}));
  }
  const json& operation(const request& what) const {
    static const json none;
    auto path = all.at("paths").find("/" + std::string{what.verb()});
    if (path == all.at("paths").end())
      return none;
    auto method = path->find(what.method == "GET" ? "get" : "put");
    return method == path->end() ? none : *method;
  }
  static const json* body_of(const json& operation) {
    auto body = operation.find("requestBody");
    return body == operation.end() ? nullptr : &body->at("content").at("application/json").at("schema");
  }
};

// YAML by Python, whose JSON has every key as a text: some documents quote the numbers of responses, some don't.
std::string as_json(const std::filesystem::path& yaml) {
  const auto command = "python3 -c 'import sys,json,yaml; json.dump(yaml.safe_load(open(sys.argv[1])),sys.stdout)' '" +
                       yaml.string() + "'";
  std::string out;
  auto* pipe = ::popen(command.c_str(), "r");
  for (char buffer[65536]; pipe != nullptr;) {
    auto n = std::fread(buffer, 1, sizeof buffer, pipe);
    if (n == 0)
      break;
    out.append(buffer, n);
  }
  if (pipe == nullptr || ::pclose(pipe) != 0)
    throw std::runtime_error(yaml.string() + ": cannot read it; python3 with the package python3-yaml is needed");
  return out;
}

std::vector<document> read_documents() {
  std::vector<document> out;
  const char* directory = std::getenv("CAISSON_CH_OPENAPI");
  if (directory == nullptr || *directory == '\0')
    return out;
  for (const auto& each : std::filesystem::directory_iterator{directory})
    if (each.path().extension() == ".yaml")
      out.push_back({each.path().stem(), json::parse(as_json(each.path()))});
  std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  return out;
}

class contract : public ::testing::Test {
protected:
  static void SetUpTestSuite() { documents = read_documents(); }
  void SetUp() override {
    if (documents.empty())
      GTEST_SKIP() << "CAISSON_CH_OPENAPI does not name a directory with Cloud Hypervisor's OpenAPI documents (*.yaml)";
  }
  inline static std::vector<document> documents;
};

// Empty, or what is wrong. An object without additionalProperties takes what its properties name and no more.
std::string mismatch(const document& in, const json& schema_or_ref, const json& value, const std::string& where) {
  const auto& schema = in.at(schema_or_ref);
  auto says = [&](const std::string& what) { return in.name + ": " + where + ": " + what + ": " + value.dump(); };
  const auto type = schema.value("type", "");
  if (auto choices = schema.find("enum"); choices != schema.end())
    if (std::find(choices->begin(), choices->end(), value) == choices->end())
      return says("none of " + choices->dump());
  if (type == "boolean")
    return value.is_boolean() ? "" : says("no boolean");
  if (type == "string")
    return value.is_string() ? "" : says("no string");
  if (type == "integer") {
    if (!value.is_number_integer() || (value.is_number_unsigned() && value.get<std::uint64_t>() > INT64_MAX))
      return says("no int64");
    const auto number = value.get<std::int64_t>();
    if (number < schema.value("minimum", std::int64_t{0}))
      return says("below its minimum");
    const auto format = schema.value("format", "");
    const std::map<std::string, std::int64_t> most{
        {"int16", INT16_MAX}, {"int32", INT32_MAX}, {"uint8", UINT8_MAX}, {"uint32", UINT32_MAX}};
    if (auto limit = most.find(format); limit != most.end() && number > limit->second)
      return says("beyond " + format);
    return "";
  }
  if (type == "array") {
    if (!value.is_array())
      return says("no list");
    for (std::size_t i = 0; i < value.size(); ++i)
      if (auto wrong = mismatch(in, schema.at("items"), value[i], where + "[" + std::to_string(i) + "]"); !wrong.empty())
        return wrong;
    return "";
  }
  if (type != "object")
    return says("a type that this test does not know: " + schema.dump());
  if (!value.is_object())
    return says("no object");
  for (const auto& name : schema.value("required", json::array()))
    if (!value.contains(name.get<std::string>()))
      return says("without " + name.get<std::string>());
  for (const auto& [name, each] : value.items()) {
    auto property = schema.at("properties").find(name);
    if (property == schema.at("properties").end())
      return says("unknown key " + name);
    if (auto wrong = mismatch(in, *property, each, where + "." + name); !wrong.empty())
      return wrong;
  }
  return "";
}

std::string mismatch(const document& in, const request& what) {
  const auto& operation = in.operation(what);
  const auto verb = std::string{what.verb()};
  if (operation.is_null())
    return in.name + ": no " + what.method + " " + verb;
  const auto* body = document::body_of(operation);
  if ((body == nullptr) != what.body.empty())
    return in.name + ": " + verb + (body == nullptr ? " takes no body" : " needs a body");
  return body == nullptr ? "" : mismatch(in, *body, json::parse(what.body), verb);
}

TEST_F(contract, all_documents_are_there) {
  std::string names;
  for (const auto& each : documents)
    names += each.name + " ";
  EXPECT_EQ(documents.size(), 3u) << names;
}

TEST_F(contract, every_request_is_valid_for_every_version) {
  EXPECT_TRUE(rc::check([] {
    auto what = any_request(*rc::gen::weightedOneOf<int>(
        {{1, rc::gen::inRange(0, request_kinds)}, {1, rc::gen::just(request_kinds - 1)}}));
    for (const auto& each : documents)
      if (auto wrong = mismatch(each, what); !wrong.empty())
        RC_FAIL(wrong);
  }));
}

TEST_F(contract, this_test_itself_sees_errors) {
  for (const auto& each : documents) {
    for (const char* bad : {R"({"payload":{},"memory":{"size":1,"hotplugSize":1}})", R"({"memory":{"size":1}})",
                            R"({"payload":{},"memory":{"size":1.5}})", R"({"payload":{},"memory":{"size":9223372036854775808}})",
                            R"({"payload":{},"vsock":{"cid":2,"socket":"/s"}})", R"({"payload":{},"console":{"mode":"file"}})",
                            R"({"payload":{},"disks":[{"path":7}]})", R"({"payload":{},"fs":{}})"})
      EXPECT_NE(mismatch(each, {"PUT", "/api/v1/vm.create", bad}), "") << each.name << ": " << bad;
    EXPECT_NE(mismatch(each, {"PUT", "/api/v1/vm.boot", "{}"}), "");
    EXPECT_NE(mismatch(each, {"PUT", "/api/v1/vm.resize", ""}), "");
    EXPECT_NE(mismatch(each, {"GET", "/api/v1/vm.boot", ""}), "");
    EXPECT_NE(mismatch(each, {"PUT", "/api/v1/vm.start", ""}), "");
  }
}

// Whatever our own schema takes the document takes too.
void expect_subset(const document& in, const schema::object& ours, const json& theirs_or_ref, const std::string& where) {
  const auto& theirs = in.at(theirs_or_ref);
  ASSERT_EQ(theirs.value("type", ""), "object") << in.name << ": " << where;
  for (const auto& name : theirs.value("required", json::array())) {
    auto at = std::find_if(ours.fields.begin(), ours.fields.end(), [&](const auto& f) { return f.name == name; });
    EXPECT_TRUE(at != ours.fields.end() && at->required) << in.name << ": " << where << ": " << name << " is required";
  }
  for (const auto& field : ours.fields) {
    const auto place = in.name + ": " + where + "." + std::string{field.name};
    auto property = theirs.at("properties").find(std::string{field.name});
    ASSERT_TRUE(property != theirs.at("properties").end()) << place;
    const auto& type = in.at(*property);
    const std::map<schema::kind, std::string> names{{schema::kind::boolean, "boolean"},
                                                    {schema::kind::integer, "integer"},
                                                    {schema::kind::text, "string"},
                                                    {schema::kind::object, "object"},
                                                    {schema::kind::list, "array"}};
    ASSERT_EQ(type.value("type", ""), names.at(field.type)) << place;
    if (field.type == schema::kind::integer) {
      EXPECT_EQ(mismatch(in, type, field.least, place), "");
      EXPECT_EQ(mismatch(in, type, field.most, place), "");
    }
    if (type.contains("enum")) {
      EXPECT_FALSE(field.choices.empty()) << place << " takes any text";
      for (auto choice : field.choices)
        EXPECT_EQ(mismatch(in, type, std::string{choice}, place), "");
    }
    if (field.of != nullptr)
      expect_subset(in, *field.of, field.type == schema::kind::list ? type.at("items") : type, where + "." + std::string{field.name});
  }
}

TEST_F(contract, our_schema_is_a_subset_of_every_document) {
  for (const auto& each : documents)
    for (const auto& endpoint : schema::endpoints()) {
      const auto& operation =
          each.operation({std::string{endpoint.method}, std::string{schema::path_prefix}.append(endpoint.verb), {}});
      ASSERT_FALSE(operation.is_null()) << each.name << ": " << endpoint.verb;
      const auto* body = document::body_of(operation);
      ASSERT_EQ(body == nullptr, endpoint.body == nullptr) << each.name << ": " << endpoint.verb;
      if (body != nullptr)
        expect_subset(each, *endpoint.body, *body, std::string{endpoint.verb});
    }
}

TEST_F(contract, every_status_that_may_come_has_a_meaning) {
  for (const auto& each : documents)
    for (const auto& endpoint : schema::endpoints()) {
      const std::string verb{endpoint.verb};
      auto statuses = beside_the_document.at(verb);
      const auto& operation = each.operation({std::string{endpoint.method}, "/" + verb, {}});
      for (const auto& [status, ignored] : operation.at("responses").items())
        statuses.insert(std::stoi(status));
      for (int status : statuses)
        EXPECT_NE(answer_of(status), answer_kind::strange) << each.name << ": " << verb << ": " << status;
      EXPECT_TRUE(std::any_of(statuses.begin(), statuses.end(), [](int s) { return answer_of(s) == answer_kind::done; }))
          << each.name << ": " << verb;
    }
}

} // namespace
} // namespace caisson::cloud_hypervisor
