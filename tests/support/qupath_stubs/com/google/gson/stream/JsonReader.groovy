package com.google.gson.stream

import groovy.json.JsonSlurper

/* Gson's reader as far as the scripts use it: a text's values in their order, which must be asked for as they come. */
class JsonReader implements Closeable {
    private final Reader source
    private final List<Iterator> open = []
    private final List value

    JsonReader(Reader source) {
        this.source = source
        value = [new JsonSlurper().parse(source)]
    }

    /* The next value as it is, in place of its tokens. */
    Object take() { value ? value.pop() : open.last().next() }

    boolean hasNext() { open.last().hasNext() }

    void beginObject() { open << ((Map) take()).entrySet().iterator() }

    void beginArray() { open << ((List) take()).iterator() }

    String nextName() {
        def entry = open.last().next()
        value << entry.value
        return entry.key
    }

    String nextString() { (String) take() }

    void skipValue() { take() }

    void endObject() { end() }

    void endArray() { end() }

    private void end() {
        assert !open.last().hasNext() && !value
        open.removeAt(open.size() - 1)
    }

    void close() { source.close() }
}
