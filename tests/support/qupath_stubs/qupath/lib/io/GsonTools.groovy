package qupath.lib.io

import com.google.gson.JsonObject
import com.google.gson.stream.JsonReader
import qupath.lib.objects.PathObject
import qupath.lib.objects.classes.PathClass
import qupath.lib.scripting.QP

class GsonTools {
    static Gson getInstance() { new Gson() }
}

class Gson {
    Object fromJson(JsonReader reader, Class type) { made(reader.take(), type) }

    Object fromJson(JsonObject object, Class type) { made(object.tree, type) }

    private Object made(Map tree, Class type) {
        if (type == JsonObject)
            return new JsonObject(tree: tree)
        assert type == PathObject
        assert QP.VERSION.minor >= 6 || tree.properties.metadata == null  // a warning for each nucleus
        def known = tree.properties.classification
        return new PathObject(
            id: UUID.fromString(tree.id),
            metadata: tree.properties.metadata,
            pathClass: known ? PathClass.fromString(known.name, null) : null
        )
    }
}
