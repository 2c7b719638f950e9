package com.google.gson

class JsonObject {
    Map tree

    JsonObject getAsJsonObject(String name) { new JsonObject(tree: tree[name]) }

    void remove(String name) { tree.remove(name) }
}
