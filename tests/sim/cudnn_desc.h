/* cudnn_desc - descriptors of cuDNN's graph API: attributes, and what is made of them when they are final. */
#ifndef TESTS_SIM_CUDNN_DESC_H
#define TESTS_SIM_CUDNN_DESC_H

#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>
#include <cudnn.h>
#include "tests/sim/conv_sim.h"

namespace cusim
{
enum { N_ENGINES = 5 }; /* with the settings of their knobs: cudnn_sim.cpp */

struct Body;
using BodyPtr = std::shared_ptr<Body>;

/* A value of an attribute: bytes, or other descriptors. */
struct Value {
    int64_t count = 0;
    std::string bytes;
    std::vector<BodyPtr> descs;
};

struct Body {
    cudnnBackendDescriptorType_t type;
    bool final = false;
    std::map<int, Value> values;
    Conv conv = {};              /* operations, and what is made from them */
    int engine = -1;             /* engines, configurations, plans */
    std::vector<BodyPtr> offers; /* heuristics: configurations; configurations: knobs */
};

/* Attributes that may be set, with their types; alpha and beta may also be doubles. Dies for a type of
 * descriptors that is not simulated. */
const std::map<int, cudnnBackendAttributeType_t> &desc_settable(cudnnBackendDescriptorType_t t);
size_t desc_value_bytes(cudnnBackendAttributeType_t t);
/* Checks it, and makes b.conv, b.engine and b.offers. */
cudnnStatus_t desc_finalize(Body &b);
/* Keeps the reason for cudnnGetLastErrorString, and returns s. */
cudnnStatus_t desc_refuse(cudnnStatus_t s, const std::string &why);
std::string &desc_last_message();

const Value *desc_find(const Body &b, int name);

/* Element i of an attribute; the default when it was not set. */
template <class T> T desc_get(const Body &b, int name, T otherwise = T(), int64_t i = 0)
{
    const Value *v = desc_find(b, name);
    T r = otherwise;
    if (v && i < v->count)
        memcpy(&r, v->bytes.data() + size_t(i) * sizeof r, sizeof r);
    return r;
}
} // namespace cusim

#endif
