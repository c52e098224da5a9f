/* order_check - whether operations that touch the same bytes on different streams are ordered by events.
 *
 * For every range of bytes: which operation wrote it last, and which have read it since. An operation carries
 * a vector clock: what each actor must have finished before it may begin, gathered from the order on its
 * stream, the events it waits for and what the host has waited for. A reader must have the last writer in its
 * past, a writer also all readers. So a forgotten event is found whatever order things happened to run in.
 */
#include <map>
#include <set>
#include "tests/sim/sim.h"

namespace cusim
{
namespace
{
struct Use {
    unsigned actor;
    uint32_t tick;
    const std::string *name;
};

struct Piece {
    uintptr_t end;
    Use writer; /* name NULL: nobody */
    std::vector<Use> readers;
};

using Pieces = std::map<uintptr_t, Piece>; /* by first byte; they do not overlap */

Pieces &pieces()
{
    static Pieces &p = *new Pieces;
    return p;
}

const std::string *interned(const std::string &s)
{
    static std::set<std::string> &all = *new std::set<std::string>;
    return &*all.insert(s).first;
}

/* Makes `a` a border between pieces where it lies inside of one. */
void split(uintptr_t a)
{
    auto it = pieces().lower_bound(a);
    if (it == pieces().begin())
        return;
    --it;
    if (it->second.end <= a)
        return;
    Piece right = it->second;
    it->second.end = a;
    pieces()[a] = right;
}

void require_past(const Use &earlier, const char *did, const Use &now, const char *does, const Clock &clock,
                  uintptr_t begin, uintptr_t end)
{
    if (!earlier.name || clock_of(clock, earlier.actor) >= earlier.tick)
        return;
    const Block *b = device_find(begin);
    die("no event orders \"%s\", which %s bytes %zu to %zu of %s, after \"%s\", which %s them on another "
        "stream",
        now.name->c_str(), does, size_t(begin - (b ? b->begin : 0)), size_t(end - (b ? b->begin : 0)),
        b ? ("a block of " + std::to_string(b->bytes)).c_str() : "host memory", earlier.name->c_str(), did);
}

void use_read(const Use &u, const Clock &clock, uintptr_t begin, uintptr_t end)
{
    split(begin);
    split(end);
    for (uintptr_t a = begin; a < end;) {
        auto it = pieces().lower_bound(a);
        if (it == pieces().end() || it->first > a) {
            uintptr_t stop = it == pieces().end() || it->first > end ? end : it->first;
            it = pieces().emplace(a, Piece{stop, Use{0, 0, nullptr}, {}}).first;
        }
        Piece &p = it->second;
        require_past(p.writer, "wrote", u, "reads", clock, a, p.end);
        bool known = false;
        for (Use &r : p.readers)
            if (r.actor == u.actor) {
                r = u;
                known = true;
            }
        if (!known)
            p.readers.push_back(u);
        a = p.end;
    }
}

void use_write(const Use &u, const Clock &clock, uintptr_t begin, uintptr_t end)
{
    split(begin);
    split(end);
    auto it = pieces().lower_bound(begin);
    while (it != pieces().end() && it->first < end) {
        require_past(it->second.writer, "wrote", u, "writes", clock, it->first, it->second.end);
        for (const Use &r : it->second.readers)
            require_past(r, "read", u, "writes", clock, it->first, it->second.end);
        it = pieces().erase(it);
    }
    pieces().emplace(begin, Piece{end, u, {}});
}
} // namespace

void clock_join(Clock &into, const Clock &from)
{
    if (into.size() < from.size())
        into.resize(from.size());
    for (size_t i = 0; i < from.size(); i++)
        if (into[i] < from[i])
            into[i] = from[i];
}

uint32_t clock_of(const Clock &c, unsigned actor)
{
    return actor < c.size() ? c[actor] : 0;
}

void order_check(const std::string &name, unsigned actor, const Clock &clock,
                 const std::vector<Range> &ranges)
{
    if (!settings().check_order || ranges.empty())
        return;
    Use u = {actor, clock_of(clock, actor), interned(name)};
    for (const Range &r : ranges)
        if (!r.write)
            use_read(u, clock, r.begin, r.end);
    for (const Range &r : ranges)
        if (r.write)
            use_write(u, clock, r.begin, r.end);
}

void order_forget(uintptr_t begin, uintptr_t end)
{
    split(begin);
    split(end);
    auto first = pieces().lower_bound(begin), last = pieces().lower_bound(end);
    pieces().erase(first, last);
}
} // namespace cusim
