/* No answer has two equal series, whatever rules there are. The input is rules, one a line, as iptables-save prints them behind
 * "-A CHAIN "; the first byte of a line may choose another chain. Two programs: t/fuzz-series is libFuzzer's (make fuzz),
 * t/series replays files. Two equal series abort. */
#define main nfprom_main
#include "../nfprom.c"
#undef main

int nfprom_main(int argc, char **argv);

enum {
    INPUT_MAX = 64 * 1024,
    EXPOSITION_MAX = 32 * INPUT_MAX,
    LINES_MAX = 64 * 1024
};

/* Three chains: two of the user, and a built-in one. The last byte of the first is no character. */
static struct config config;
static const char *const chain_names[] = {"prometheus", "INPUT", "caf\xe9"};

static void configure(void) {
    static char *arguments[] = {"nfprom", "-chain", "prometheus", "-chain", "INPUT", "-chain", "caf\xe9", NULL};
    if (config.nchains == 0)
        parse_flags(&config, COUNT(arguments) - 1, arguments);
}

/* No comment may give a label that is there already: the names of the table of labels are all reserved. */
static void check_reserved(void) {
    for (size_t i = 0; i < COUNT(labels); i++) {
        bool found = puts_names(&labels[i]);
        for (size_t r = 0; r < COUNT(reserved_names); r++)
            found |= text_is(reserved_names[r], labels[i].name);
        if (!found) {
            fprintf(stderr, "not reserved: %s\n", labels[i].name);
            abort();
        }
    }
}

/* The input as a table. */
static struct sink write_table(char *to, size_t size, const char *data, size_t len) {
    struct sink table = begin_string(to, size);
    put_string(&table, "*filter\n:INPUT ACCEPT [1:2]\n:prometheus - [0:0]\n:caf\xe9 - [0:0]\n");
    while (len > 0) {
        const char *newline = memchr(data, '\n', len);
        size_t line = newline ? (size_t)(newline - data) : len;
        bool chooses = line > 0 && *data >= '1' && *data <= '2';
        put_string(&table, "[3:4] -A ");
        put_string(&table, chain_names[chooses ? *data - '0' : 0]);
        put_string(&table, " ");
        put(&table, data + chooses, line - chooses);
        put_string(&table, "\n");
        data += newline ? line + 1 : line;
        len -= newline ? line + 1 : line;
    }
    put_string(&table, "COMMIT\n");
    return table;
}

/* What a family that was read like this knows. (What comes behind an error is not there.) */
static void read_rules(struct family *family, struct ruleset_memory memory, struct text table) {
    static struct ruleset rs;
    struct wanted wanted = {DIALECT_SAVE, "filter", config.chains, config.nchains, reserved_labels};
    struct rule rule;
    size_t room;
    ruleset_begin(&rs, wanted, memory);
    char *to = ruleset_room(&rs, &room);
    if (room < table.len || !begin_facts(&family->facts))
        abort();
    memcpy(to, table.at, table.len);
    ruleset_fed(&rs, table.len);
    enum item item = ruleset_next(&rs, &rule);
    while (item == ITEM_RULE || item == ITEM_POLICY) {
        if (!keep(&family->facts, item, &rule))
            abort();
        item = ruleset_next(&rs, &rule);
    }
    drop_index(&family->facts);
}

static int compare(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* Cuts the exposition in lines, and each behind its labels. */
static void check_lines(char *text) {
    static char *lines[LINES_MAX];
    size_t n = 0;
    for (char *line = strtok(text, "\n"); line && n < LINES_MAX; line = strtok(NULL, "\n")) {
        *strrchr(line, ' ') = '\0';
        if (*line != '#')
            lines[n++] = line;
    }
    qsort(lines, n, sizeof *lines, compare);
    for (size_t i = 1; i < n; i++) {
        if (strcmp(lines[i - 1], lines[i]) == 0) {
            fprintf(stderr, "twice: %s\n", lines[i]);
            abort();
        }
    }
}

static void check(const char *data, size_t len) {
    static char table[32 * INPUT_MAX], exposition[EXPOSITION_MAX];
    static char lines[RULE_LINE_MAX + sizeof table], comment[RULE_LINE_MAX];
    static struct report report;
    configure();
    check_reserved();
    struct family *family = &report.families[IPV4];
    struct sink out = begin_string(exposition, sizeof exposition);
    struct sink in = write_table(table, sizeof table, data, len < INPUT_MAX ? len : INPUT_MAX);
    report.config = &config;
    *family = (struct family){.kind = &family_kinds[IPV4], .enabled = true, .success = true};
    read_rules(family, (struct ruleset_memory){RULE_LINE_MAX, sizeof table, lines, comment}, (struct text){table, in.used});
    put_exposition(&out, &report, FORMAT_TEXT);
    end_string(&out);
    bool is_whole = out.passed == 0 && !memchr(exposition, '\0', out.used);
    if (is_whole)
        check_lines(exposition);
    forget_facts(&family->facts);
}

#ifdef FUZZ
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    check((const char *)data, size);
    return 0;
}
#else
int main(int argc, char **argv) {
    static char data[INPUT_MAX];
    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        if (!file)
            return perror(argv[i]), 2;
        size_t size = fread(data, 1, sizeof data, file);
        fclose(file);
        check(data, size);
    }
    return 0;
}
#endif
