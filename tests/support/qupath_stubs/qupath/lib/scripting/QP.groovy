package qupath.lib.scripting

/* What of QuPath's objects the scripts touch; the first of the project's images is open. */
class QP {
    static Version VERSION = new Version(major: 0, minor: 6)
    static Project project = new Project()

    static Entry addImage(String name, int width, int height) {
        def entry = new Entry(imageName: name, data: new ImageData(server: new Server(width: width, height: height)))
        project.imageList << entry
        return entry
    }

    static ImageData getCurrentImageData() { project.imageList[0].data }

    static Entry getProjectEntry() { project.imageList[0] }
}

class Version {
    int major
    int minor
}

class Hierarchy {
    List objects = []
    Object rootObject = new Object()
    Object annotation  // round all objects, if there is one
    int fired = 0

    List getDetectionObjects() { objects }

    boolean removeObjects(Collection some, boolean keepChildren) { objects.removeAll(some) }

    boolean addObjects(Collection some) {
        some.each { it.parent = rootObject }
        objects.addAll(some)
    }

    void resolveHierarchy() {
        if (annotation != null)
            objects.each { it.parent = annotation }
    }

    void fireObjectClassificationsChangedEvent(Object source, Collection some) { fired += some.size() }
}

class Server {
    int width
    int height
}

class ImageData {
    Hierarchy hierarchy = new Hierarchy()
    Server server
}

class Entry {
    String imageName
    ImageData data
    int saved = 0

    ImageData readImageData() { data }

    void saveImageData(ImageData data) { saved++ }
}

class Project {
    List<Entry> imageList = []
}
