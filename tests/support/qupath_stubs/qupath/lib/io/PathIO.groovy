package qupath.lib.io

import groovy.json.JsonSlurper
import qupath.lib.objects.classes.PathClass

class PathIO {
    static List readObjectsFromGeoJSON(InputStream stream) {
        new JsonSlurper().parse(stream, 'UTF-8').features.collect {
            def known = it.properties.classification
            new Nucleus(
                id: UUID.fromString(it.id),
                metadata: it.properties.metadata,
                pathClass: known ? PathClass.fromString(known.name, null) : null
            )
        }
    }
}

class Nucleus {
    UUID id
    Map<String, String> metadata
    PathClass pathClass

    UUID getID() { id }
}
