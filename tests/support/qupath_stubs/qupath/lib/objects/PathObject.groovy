package qupath.lib.objects

import qupath.lib.objects.classes.PathClass

class PathObject {
    UUID id
    Map<String, String> metadata
    PathClass pathClass
    Object parent

    UUID getID() { id }
}
