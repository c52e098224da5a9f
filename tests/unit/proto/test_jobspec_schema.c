/* test_jobspec_schema - the table of fields, proto/schema/jobspec.schema.json and the key list of
 * docs/jobs.md say the same.
 *
 * The schema is built here from the table and compared with the file, whole; so is each line of the key list.
 * After a change of the table, `test_jobspec_schema --print schema` and `--print docs` print what the files
 * must hold.
 */
#include "common/json.h"
#include "common/fsutil.h"
#include "proto/jobspec_fields.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* Rules over several keys that a schema can express and the table does not hold. */
struct extra_rule {
    const char *parent;
    const char *json;
};

static const struct extra_rule extra_rules[] = {
    {"/optim", "{\"if\": {\"properties\": {\"nesterov\": {\"const\": true}}, \"required\": [\"nesterov\"]},"
               " \"then\": {\"properties\": {\"momentum\": {\"exclusiveMinimum\": 0}}}}"},
};

static cJSON *parse(const char *text)
{
    struct err e = ERR_INIT;
    cJSON *v = json_parse(text, strlen(text), &e);

    if (!v)
        fail_msg("%s: %s", e.msg, text);
    return v;
}

static const char *type_name(const struct field *f)
{
    static const char *const names[] = {
        [FIELD_OBJECT] = "object", [FIELD_LABEL] = "string",  [FIELD_PATH] = "string",
        [FIELD_ENUM] = "string",   [FIELD_WORD] = "string",   [FIELD_BOOL] = "boolean",
        [FIELD_INT] = "integer",   [FIELD_INT64] = "integer", [FIELD_UINT64] = "integer",
        [FIELD_NUMBER] = "number", [FIELD_NUMBERS] = "array", [FIELD_IDS] = "array",
        [FIELD_SWEEP] = "object",
    };
    return names[f->type];
}

static void add_bounds(cJSON *o, const struct field *f)
{
    cJSON_AddNumberToObject(o, f->flags & FIELD_MIN_OUT ? "exclusiveMinimum" : "minimum", f->min);
    cJSON_AddNumberToObject(o, f->flags & FIELD_MAX_OUT ? "exclusiveMaximum" : "maximum", f->max);
}

static void add_string_rules(cJSON *o, const struct field *f)
{
    cJSON_AddNumberToObject(o, "minLength", 1);
    cJSON_AddNumberToObject(o, "maxLength", (double)f->cap_bytes - 1);
    if (f->type == FIELD_LABEL)
        cJSON_AddStringToObject(o, "pattern", "^[A-Za-z0-9]");
    cJSON *not = cJSON_AddObjectToObject(o, "not");
    cJSON_AddStringToObject(not, "type", "string"); /* null is judged elsewhere */
    cJSON_AddStringToObject(not, "pattern",
                            f->type == FIELD_LABEL ? "[^A-Za-z0-9._+=-]" : "[\\u0000-\\u001f\\u007f]");
}

static void add_choices(cJSON *o, const struct field *f)
{
    cJSON *list = cJSON_AddArrayToObject(o, "enum");

    for (const struct field_choice *c = f->choices; c->name; c++)
        if (c->value != FIELD_LATER)
            cJSON_AddItemToArray(list, cJSON_CreateString(c->name));
    if (f->when_key)
        cJSON_AddItemToArray(list, cJSON_CreateNull());
}

static void add_object_rules(cJSON *o, const char *pointer);

static void add_type_rules(cJSON *o, const struct field *f)
{
    switch (f->type) {
    case FIELD_OBJECT:
        add_object_rules(o, f->pointer);
        break;
    case FIELD_LABEL:
    case FIELD_PATH:
        add_string_rules(o, f);
        break;
    case FIELD_ENUM:
    case FIELD_WORD:
        add_choices(o, f);
        break;
    case FIELD_NUMBERS: {
        cJSON *items = cJSON_AddObjectToObject(o, "items");
        cJSON_AddNumberToObject(o, "minItems", 1);
        cJSON_AddNumberToObject(o, "maxItems", JOBSPEC_MAX_MILESTONES);
        cJSON_AddStringToObject(items, "type", "number");
        add_bounds(items, f);
        break;
    }
    case FIELD_IDS: {
        cJSON *items = cJSON_AddObjectToObject(o, "items");
        cJSON_AddNumberToObject(o, "maxItems", JOBSPEC_MAX_AFTER);
        cJSON_AddTrueToObject(o, "uniqueItems");
        cJSON_AddStringToObject(items, "type", "integer");
        add_bounds(items, f);
        break;
    }
    case FIELD_SWEEP: {
        cJSON *values = cJSON_AddObjectToObject(o, "additionalProperties");
        cJSON_AddStringToObject(values, "type", "array");
        cJSON_AddNumberToObject(values, "minItems", 1);
        cJSON_AddNumberToObject(o, "minProperties", 1);
        cJSON_AddNumberToObject(o, "maxProperties", JOBSPEC_MAX_SWEEP_KEYS);
        break;
    }
    case FIELD_INT:
    case FIELD_INT64:
    case FIELD_UINT64:
    case FIELD_NUMBER:
        add_bounds(o, f);
        break;
    case FIELD_BOOL:
        break;
    }
}

static void add_type(cJSON *o, const struct field *f)
{
    bool null_too = f->flags & FIELD_NULLABLE || f->when_key;

    if (!null_too) {
        cJSON_AddStringToObject(o, "type", type_name(f));
        return;
    }
    cJSON *list = cJSON_AddArrayToObject(o, "type");
    cJSON_AddItemToArray(list, cJSON_CreateString(type_name(f)));
    cJSON_AddItemToArray(list, cJSON_CreateString("null"));
}

static cJSON *schema_of(const struct field *f)
{
    cJSON *o = cJSON_CreateObject();

    cJSON_AddStringToObject(o, "description", f->help);
    if (f->flags & FIELD_FIXED) {
        cJSON_AddItemToObject(o, "const", parse(f->def));
    } else if (type_name(f) && f->min == f->max && f->max != 0) {
        cJSON_AddNumberToObject(o, "const", f->min);
    } else {
        add_type(o, f);
        add_type_rules(o, f);
    }
    if (f->def)
        cJSON_AddItemToObject(o, "default", parse(f->def));
    return o;
}

/* {"const": the value that lets f exist}, or {"enum": those that do} */
static cJSON *deciding_values(const struct field *f)
{
    cJSON *o = cJSON_CreateObject();

    if (!f->when_values[1]) {
        cJSON_AddStringToObject(o, "const", f->when_values[0]);
        return o;
    }
    cJSON *list = cJSON_AddArrayToObject(o, "enum");
    for (int i = 0; f->when_values[i]; i++)
        cJSON_AddItemToArray(list, cJSON_CreateString(f->when_values[i]));
    return o;
}

/* Does f exist where the deciding key is left out? */
static bool exists_by_default(const struct field *f, const struct field *decides)
{
    cJSON *def = decides->def ? parse(decides->def) : NULL;
    bool exists = def && jobspec_field_exists_with(f, def->valuestring);

    cJSON_Delete(def);
    return exists;
}

/* {"if": the deciding key has one of the values, "then": this key as usual, "else": no such key} */
static cJSON *rule_of(const struct field *f, const struct field *decides)
{
    cJSON *rule = cJSON_CreateObject(), *if_ = cJSON_AddObjectToObject(rule, "if");
    cJSON *then = cJSON_AddObjectToObject(rule, "then"), *else_ = cJSON_AddObjectToObject(rule, "else");
    const char *key = jobspec_field_key(f);

    cJSON_AddItemToObject(cJSON_AddObjectToObject(if_, "properties"), f->when_key, deciding_values(f));
    if (!exists_by_default(f, decides))
        cJSON_AddItemToArray(cJSON_AddArrayToObject(if_, "required"), cJSON_CreateString(f->when_key));
    cJSON *yes = cJSON_AddObjectToObject(cJSON_AddObjectToObject(then, "properties"), key);
    cJSON_AddStringToObject(yes, "type", type_name(f));
    if (!f->def && !f->derive)
        cJSON_AddItemToArray(cJSON_AddArrayToObject(then, "required"), cJSON_CreateString(key));
    cJSON *no = cJSON_AddObjectToObject(cJSON_AddObjectToObject(else_, "properties"), key);
    cJSON_AddStringToObject(no, "type", "null");
    return rule;
}

static const struct field *child_named(const char *parent, const char *key)
{
    for (int i = 0; i < jobspec_n_fields; i++)
        if (jobspec_field_is_child(&jobspec_fields[i], parent) &&
            strcmp(jobspec_field_key(&jobspec_fields[i]), key) == 0)
            return &jobspec_fields[i];
    return NULL;
}

static void add_object_rules(cJSON *o, const char *pointer)
{
    cJSON *properties = cJSON_AddObjectToObject(o, "properties");
    cJSON *required = cJSON_CreateArray(), *rules = cJSON_CreateArray();

    for (int i = 0; i < jobspec_n_fields; i++) {
        const struct field *f = &jobspec_fields[i];
        if (!jobspec_field_is_child(f, pointer))
            continue;
        cJSON_AddItemToObject(properties, jobspec_field_key(f), schema_of(f));
        if (f->when_key)
            cJSON_AddItemToArray(rules, rule_of(f, child_named(pointer, f->when_key)));
        else if (!f->def && !f->derive)
            cJSON_AddItemToArray(required, cJSON_CreateString(jobspec_field_key(f)));
    }
    for (size_t i = 0; i < sizeof extra_rules / sizeof *extra_rules; i++)
        if (strcmp(extra_rules[i].parent, pointer) == 0)
            cJSON_AddItemToArray(rules, parse(extra_rules[i].json));
    cJSON_AddFalseToObject(o, "additionalProperties");
    if (required->child)
        cJSON_AddItemToObject(o, "required", required);
    else
        cJSON_Delete(required);
    if (rules->child)
        cJSON_AddItemToObject(o, "allOf", rules);
    else
        cJSON_Delete(rules);
}

static cJSON *build_schema(void)
{
    cJSON *root = cJSON_CreateObject();

    cJSON_AddStringToObject(root, "$schema", "https://json-schema.org/draft/2020-12/schema");
    cJSON_AddStringToObject(root, "$id", "urn:batchformer:jobspec:1");
    cJSON_AddStringToObject(root, "title", "batchformer job spec");
    cJSON_AddStringToObject(
        root, "description",
        "What one training job is. docs/jobs.md explains the keys and lists the rules over "
        "several keys that a schema cannot express.");
    cJSON_AddStringToObject(root, "type", "object");
    add_object_rules(root, "");
    return root;
}

/* One line of the key list in docs/jobs.md. */
static char *docs_line(const struct field *f)
{
    char accepted[320], name[128], def[128], when[96];

    snprintf(name, sizeof name, "%s", f->pointer + 1);
    for (char *c = name; *c; c++)
        if (*c == '/')
            *c = '.';
    jobspec_field_when(f, '`', when, sizeof when);
    if (f->flags & FIELD_FIXED)
        snprintf(accepted, sizeof accepted, "`%s`, the only value in this version", f->def);
    else
        jobspec_field_accepted(f, accepted, sizeof accepted);
    if (f->derive)
        snprintf(def, sizeof def, "%s", f->derive_text);
    else if (f->def)
        snprintf(def, sizeof def, "`%s`", f->def);
    else if (f->when_key)
        snprintf(def, sizeof def, "required with %s %s", f->when_key, when);
    else
        snprintf(def, sizeof def, "required");
    return xasprintf("| `%s` | %s | %s | %s |\n", name, accepted, def, f->help);
}

static char *read_source(const char *path)
{
    char *full = fs_join(SOURCE_DIR, path), *text;
    size_t len;
    struct err e = ERR_INIT;

    if (fs_read_file(full, 1 << 20, &text, &len, &e) < 0)
        fail_msg("%s", e.msg);
    free(full);
    return text;
}

static void test_schema_file(void **state)
{
    (void)state;
    char *file = read_source("proto/schema/jobspec.schema.json");
    cJSON *found = parse(file), *wanted = build_schema();
    char *found_text = json_text(found), *wanted_text = json_text(wanted);

    assert_string_equal(found_text, wanted_text);
    free(found_text);
    free(wanted_text);
    cJSON_Delete(found);
    cJSON_Delete(wanted);
    free(file);
}

static void test_docs(void **state)
{
    (void)state;
    char *docs = read_source("docs/jobs.md");

    for (int i = 0; i < jobspec_n_fields; i++) {
        char *line = docs_line(&jobspec_fields[i]);
        if (!strstr(docs, line))
            fail_msg("docs/jobs.md lacks the line: %s", line);
        free(line);
    }
    free(docs);
}

/* What the walk relies on. */
static void test_table_is_sound(void **state)
{
    (void)state;
    for (int i = 0; i < jobspec_n_fields; i++) {
        const struct field *f = &jobspec_fields[i];
        assert_non_null(f->help);
        assert_true(f->min <= f->max);
        if (f->def)
            cJSON_Delete(parse(f->def));
        assert_true(!(f->flags & FIELD_FIXED) || f->def);
        assert_true((f->type != FIELD_ENUM && f->type != FIELD_WORD) || f->choices);
        assert_true((f->type != FIELD_LABEL && f->type != FIELD_PATH && f->type != FIELD_WORD) ||
                    f->cap_bytes > 1);
        assert_true(!f->derive || f->derive_text);
        for (int k = 0; k < i; k++)
            assert_string_not_equal(f->pointer, jobspec_fields[k].pointer);
        assert_int_equal(f->when_key != NULL, f->when_values[0] != NULL);
        if (!f->when_key)
            continue;
        bool before = false;
        for (int k = 0; k < i; k++)
            before = before || (strcmp(jobspec_field_key(&jobspec_fields[k]), f->when_key) == 0 &&
                                strlen(jobspec_fields[k].pointer) - strlen(f->when_key) ==
                                    strlen(f->pointer) - strlen(jobspec_field_key(f)));
        assert_true(before);
    }
}

static int print_files(const char *what)
{
    if (strcmp(what, "schema") == 0) {
        cJSON *schema = build_schema();
        char *text = json_text_pretty(schema);
        printf("%s\n", text);
        free(text);
        cJSON_Delete(schema);
        return 0;
    }
    for (int i = 0; i < jobspec_n_fields; i++) {
        char *line = docs_line(&jobspec_fields[i]);
        fputs(line, stdout);
        free(line);
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "--print") == 0)
        return print_files(argv[2]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table_is_sound),
        cmocka_unit_test(test_schema_file),
        cmocka_unit_test(test_docs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
